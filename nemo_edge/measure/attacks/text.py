"""Text that brings a known picture back: a prompt's words changed, words thrown into it, and words that are searched for.

A search lowers the diffusion loss on the picture over eight fixed noises and times, so that texts are compared on the same; what it finds
are words that anyone can type. Candidates for a place are chosen by the gradient of the loss with respect to the token's embedding
(HotFlip, Ebrahimi et al. 2018; as in GCG, Zou et al. 2023), each then asked for its true loss, or by chance. Knows nothing of pictures, or
of whether the UNet's neurons are silenced. Shapes: B rows, T tokens, V words of the vocabulary, D entries of an embedding.
"""

from __future__ import annotations

__all__ = ["FoundText", "TextSearch", "Word", "one_token_words", "thrown_in", "vocabulary"]

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemo_edge.measure.attacks.embedding import BATCH
from nemo_edge.measure.attacks.objective import Noised, Objective
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import AttackSettings
from nemo_edge.system.errors import InputError

_GRADIENT = 3
"""Batches that one with a gradient counts as."""
_ENCODED = 64
"""Texts that are encoded together."""
_END = "</w>"
"""What CLIP's tokens that end a word end with."""
_SHORTEST = 3


@dataclass(frozen=True)
class FoundText:
    """The best text after so many batches, and its loss."""

    batches: int
    text: str
    loss: float


@dataclass(frozen=True)
class Word:
    """A word that is one token of each tokenizer."""

    text: str
    ids: tuple[int, ...]
    """Its id in each."""


def vocabulary(checkpoint: Checkpoint) -> tuple[Word, ...]:
    """Return the `one_token_words` of a checkpoint. Raises `InputError` where there are none."""
    found = one_token_words(checkpoint.config.tokenizers)
    if not found:
        raise InputError("the tokenizer has no words of one token to attack with: leave attacks with text out (attack.text = [])")
    return found


def one_token_words(tokenizers: Sequence[Any]) -> tuple[Word, ...]:
    """Return the words that are read as the one token that they are: three ASCII letters or more, in order of their ids."""
    texts = sorted((place, token.removesuffix(_END)) for token, place in tokenizers[0].get_vocab().items() if token.endswith(_END))
    words = [text for _, text in texts if len(text) >= _SHORTEST and text.isascii() and text.isalpha()]
    read = [tokenizer(words, add_special_tokens=False).input_ids for tokenizer in tokenizers] if words else []
    return tuple(
        Word(text, tuple(own[0] for own in ids)) for text, *ids in zip(words, *read, strict=True) if all(len(own) == 1 for own in ids)
    )


def thrown_in(prompt: str, words: Sequence[Word], settings: AttackSettings) -> tuple[str, ...]:
    """Return `settings.variants` different texts of a prompt with one to `settings.words` words put in anywhere; the same for the same."""
    rng, made = random.Random(f"{settings.seed} {prompt}"), dict[str, None]()
    for _ in range(8 * settings.variants):
        tokens = prompt.split()
        for word in rng.choices(words, k=rng.randint(1, settings.words)):
            tokens.insert(rng.randint(0, len(tokens)), word.text)
        made[" ".join(tokens)] = None
        if len(made) == settings.variants:
            break
    return tuple(made)


@dataclass
class TextSearch:
    """Looks for words that lower the diffusion loss on one picture, until its batches are spent."""

    checkpoint: Checkpoint
    objective: Objective
    latents_CHW: Tensor
    words: Sequence[Word]
    settings: AttackSettings
    guidance: float
    """What the UNet of a consistency model, which is told it, is told."""
    at_once: int = BATCH
    """Rows that the UNet takes together."""
    advance: Callable[[int], None] = lambda done: None
    """Told of batches."""
    spent: int = 0
    """Batches so far."""
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.settings.seed)

    def greedy(self) -> Iterator[FoundText]:
        """Yield the best text after each word; once it has all its words, begin again with other noise."""
        restart = 0
        while self.spent < self.settings.batches:
            noised, chosen = self._noised(restart), list[Word]()
            while len(chosen) < self.settings.words and self.spent < self.settings.batches:
                candidates = self._candidates(chosen, noised)
                found = self._best([[*chosen, word] for word in candidates], noised)
                if found is None:
                    break
                chosen, loss = found
                yield FoundText(self.spent, _text(chosen), loss)
            restart += 1

    def random(self) -> Iterator[FoundText]:
        """Yield the best of texts made by chance, one word or more, as often as the greedy search would."""
        noised = self._noised(0)
        best: tuple[list[Word], float] = [], inf
        while self.spent < self.settings.batches:
            made = [self.rng.choices(self.words, k=self.rng.randint(1, self.settings.words)) for _ in range(self.settings.candidates)]
            found = self._best(made, noised)
            best = best if found is None else min(best, found, key=lambda each: each[1])
            yield FoundText(self.spent, _text(best[0]), best[1])

    def _noised(self, restart: int) -> Noised:
        generator = torch.Generator().manual_seed(self.settings.seed + restart)
        return self.objective.noised(self.latents_CHW, BATCH, generator)

    def _spend(self, batches: int) -> None:
        self.spent += batches
        self.advance(batches)

    def _best(self, texts: Sequence[list[Word]], noised: Noised) -> tuple[list[Word], float] | None:
        """The text of least loss, of as many as there are batches left for; None of none."""
        asked = texts[: self.settings.batches - self.spent]
        losses: list[float] = []
        for first in range(0, len(asked), _ENCODED):
            part = asked[first : first + _ENCODED]
            told = self.checkpoint.encode([_text(words) for words in part])
            for row in range(len(part)):
                losses.append(self._loss({name: value[row : row + 1] for name, value in told.items()}, noised))
                self._spend(1)
        place = int(np.argmin(losses)) if losses else -1
        return (asked[place], losses[place]) if losses else None

    @torch.no_grad()
    def _loss(self, told: dict[str, Tensor], noised: Noised) -> float:
        parts = noised.split(self.at_once)
        return sum(float(self.objective.loss(self._whole(told), part)) * len(part.time_B) for part in parts) / BATCH

    def _whole(self, told: dict[str, Tensor]) -> dict[str, Tensor]:
        """With what the UNet is told beside the text."""
        guidance = self.checkpoint.config.told_guidance(self.guidance, 1)
        return {**told, **{name: torch.from_numpy(value).to(self.latents_CHW) for name, value in guidance.items()}}

    def _candidates(self, chosen: Sequence[Word], noised: Noised) -> list[Word]:
        """Words for the place after those that are chosen."""
        count = min(self.settings.candidates, len(self.words))
        if not self.settings.gradients or self.settings.batches - self.spent <= _GRADIENT:
            return self.rng.sample(list(self.words), count)
        stand_in = self.rng.choice(self.words)
        ids = self.checkpoint.token_ids([_text([*chosen, stand_in])])
        promise_V = np.zeros(len(self.words))
        parts = zip(self.checkpoint.text_encoders, ids, self._gradients(ids, noised), strict=True)
        for which, (encoder, own, gradient_TD) in enumerate(parts):
            place = int(np.flatnonzero(own[0] == stand_in.ids[which])[-1])
            table = _embedding(encoder).weight[[word.ids[which] for word in self.words]]
            promise_V -= (table.float() @ gradient_TD[place].float()).cpu().numpy()
        self._spend(_GRADIENT)
        return [self.words[i] for i in np.argsort(-promise_V, kind="stable")[:count]]

    def _gradients(self, ids: Sequence[np.ndarray], noised: Noised) -> list[Tensor]:
        """The loss's gradient with respect to the token embeddings of each text encoder, [T, D]."""
        seen: list[Tensor] = []

        def wanted(_: Any, __: Any, output_BTD: Tensor) -> Tensor:
            seen.append(output_BTD.detach().requires_grad_())
            return seen[-1]

        with ExitStack() as stack:
            for encoder in self.checkpoint.text_encoders:
                stack.callback(_embedding(encoder).register_forward_hook(wanted).remove)
            told = self.checkpoint.encode_ids(ids)
        whole = {name: value.detach().requires_grad_(value.is_floating_point()) for name, value in self._whole(told).items()}
        self.objective.accumulate_(whole, noised, self.at_once)
        pairs = [(value, whole[name].grad) for name, value in told.items() if value.requires_grad and whole[name].grad is not None]
        torch.autograd.backward([value for value, _ in pairs], [gradient for _, gradient in pairs])
        return [each.grad[0] for each in seen if each.grad is not None]


def _embedding(encoder: Any) -> Any:
    return encoder.get_input_embeddings()


def _text(words: Sequence[Word]) -> str:
    return " ".join(word.text for word in words)
