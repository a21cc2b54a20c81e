"""Prompts that say nearly the same: a word dropped, two swapped, another case, a synonym.

With its neurons silenced, a prompt's memory must not come back for a small change of its words either. Knows words, not models.
"""

from __future__ import annotations

__all__ = ["Kind", "Paraphrase", "listed_words", "paraphrases"]

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

Kind = Literal["drop", "swap", "case", "synonym"]


@dataclass(frozen=True)
class Paraphrase:
    """A variant of a prompt, and what was changed."""

    text: str
    kind: Kind


def paraphrases(prompt: str, count: int, seed: int = 0) -> tuple[Paraphrase, ...]:
    """Return up to `count` different variants of a prompt, the kinds in turns; the same for the same prompt and seed.

    A short prompt has fewer: one word cannot be dropped or swapped, and not every word has a synonym in our list (`synonyms.txt`).
    """
    rng = random.Random(f"{seed} {prompt}")
    tokens = prompt.split()
    makers: dict[Kind, Callable[[list[str]], list[str]]] = {"drop": _drops, "swap": _swaps, "synonym": _synonyms, "case": _cases}
    waiting: dict[Kind, Iterator[str]] = {kind: iter(_shuffled(make(tokens), rng)) for kind, make in makers.items()}
    found: dict[str, Kind] = {}
    while waiting and len(found) < count:
        for kind in list(waiting):
            fresh = next((text for text in waiting[kind] if text != " ".join(tokens) and text not in found), None)
            if fresh is None:
                del waiting[kind]
            elif len(found) < count:
                found[fresh] = kind
    return tuple(Paraphrase(text, kind) for text, kind in found.items())


def listed_words() -> tuple[str, ...]:
    """Return the words of our list of synonyms, each once: plain words of prompts."""
    return tuple(_groups())


def _shuffled(texts: list[str], rng: random.Random) -> list[str]:
    return rng.sample(texts, len(texts))


def _drops(tokens: list[str]) -> list[str]:
    return [" ".join(tokens[:i] + tokens[i + 1 :]) for i in range(len(tokens)) if len(tokens) > 1]


def _swaps(tokens: list[str]) -> list[str]:
    return [" ".join([*tokens[:i], tokens[i + 1], tokens[i], *tokens[i + 2 :]]) for i in range(len(tokens) - 1)]


def _cases(tokens: list[str]) -> list[str]:
    text = " ".join(tokens)
    return [text.lower(), text.upper(), text.title()]


def _synonyms(tokens: list[str]) -> list[str]:
    """Each word that our list knows replaced by each of its synonyms; its punctuation and its capital stay."""
    found = []
    for i, token in enumerate(tokens):
        bare = token.strip(".,;:!?\"'()[]")
        for other in _groups().get(bare.lower(), ()):
            word = other.capitalize() if bare[:1].isupper() else other
            found.append(" ".join([*tokens[:i], token.replace(bare, word, 1), *tokens[i + 1 :]]))
    return found


@cache
def _groups() -> dict[str, tuple[str, ...]]:
    """Each word of our list, and the words that can stand for it."""
    lines = files("nemo_edge.localization").joinpath("synonyms.txt").read_text(encoding="utf-8").splitlines()
    groups = [line.split(", ") for line in lines if line and not line.startswith("#")]
    return {word: tuple(w for group in groups if word in group for w in group if w != word) for group in groups for word in group}
