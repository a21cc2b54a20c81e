"""Words are looked for by the loss: within a budget, from the same noise the same ones, and better than chance finds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nemo_edge.demo import CHECKPOINT, PROMPTS
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.measure.attacks.text import FoundText, TextSearch, thrown_in, vocabulary
from nemo_edge.measure.replication import load_picture
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.recipe.settings import AttackSettings

SETTINGS = AttackSettings(batches=28, candidates=5, words=3, variants=6)


def search_of(checkpoint: Checkpoint, latents_CHW: torch.Tensor, settings: AttackSettings = SETTINGS, **more: Any) -> TextSearch:
    return TextSearch(checkpoint, Objective.of(checkpoint), latents_CHW, vocabulary(checkpoint), settings, 7.0, **more)


def latents_of(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.randn(checkpoint.config.latent_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["toy", "toy_sdxl"])
def test_each_word_is_read_as_one_token_by_every_tokenizer(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    words = vocabulary(checkpoint)
    assert len(words) > SETTINGS.candidates
    ids = checkpoint.token_ids([word.text for word in words])
    for which, own in enumerate(ids):
        assert own[:, 1].tolist() == [word.ids[which] for word in words]
        assert (own[:, 2] == checkpoint.config.tokenizers[which].eos_token_id).all()


@pytest.mark.parametrize("name", ["toy", "toy_sdxl"])
@pytest.mark.parametrize("gradients", [True, False])
def test_a_search_spends_its_batches_and_no_more(name: str, gradients: bool, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    told: list[int] = []
    settings = SETTINGS.model_copy(update={"gradients": gradients})
    search = search_of(checkpoint, latents_of(checkpoint), settings, advance=told.append)
    found = list(search.greedy())
    assert search.spent == sum(told) == settings.batches
    assert [len(each.text.split()) for each in found[:4]] == [1, 2, 3, 1], "it begins again once it has all its words"
    in_parts = search_of(checkpoint, latents_of(checkpoint), settings, at_once=5)
    assert [each.text for each in in_parts.greedy()] == [each.text for each in found]


def test_random_search_keeps_the_best_and_spends_as_much(toy: Checkpoint) -> None:
    search = search_of(toy, latents_of(toy))
    found = list(search.random())
    assert search.spent == SETTINGS.batches
    losses = [each.loss for each in found]
    assert losses == sorted(losses, reverse=True)


def test_the_gradient_is_that_of_the_loss(toy_sdxl: Checkpoint) -> None:
    """Against a difference of losses, with respect to one entry of one token's embedding, of each text encoder."""
    search = search_of(toy_sdxl, latents_of(toy_sdxl))
    noised, ids = search._noised(0), toy_sdxl.token_ids([search.words[0].text])
    gradients = search._gradients(ids, noised)
    for encoder, own, gradient_TD in zip(toy_sdxl.text_encoders, ids, gradients, strict=True):
        entry = int(gradient_TD[1].abs().argmax())
        table = encoder.get_input_embeddings().weight.data
        row, step, losses = int(own[0, 1]), 1e-2, []
        for sign in (1, -1):
            table[row, entry] += sign * step
            told = toy_sdxl.encode([search.words[0].text])
            losses.append(search._loss(told, noised))
            table[row, entry] -= sign * step
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float(gradient_TD[1, entry]), rel=0.1, abs=1e-5)


def test_words_are_thrown_into_a_prompt_that_stays(toy: Checkpoint) -> None:
    words, prompt = vocabulary(toy), "a red pig"
    made = thrown_in(prompt, words, SETTINGS)
    assert len(set(made)) == SETTINGS.variants
    assert made == thrown_in(prompt, words, SETTINGS)
    for text in made:
        left = iter(text.split())
        assert all(word in left for word in prompt.split()), "in their order"
        assert 1 <= len(text.split()) - 3 <= SETTINGS.words


def test_one_word_is_found_that_names_a_memory_of_the_demo() -> None:
    """With the gradient among 24 of 460 words; the loss is far below what any general prompt's is."""
    demo = open_checkpoint(str(CHECKPOINT))
    picture = load_picture(PROMPTS / "02.png", (64, 64))
    search = search_of(demo, demo.encode_pictures(picture[None])[0], AttackSettings(batches=27, candidates=24, words=1))
    (found,) = search.greedy()
    assert found == FoundText(27, "moyai", pytest.approx(0.03, abs=0.03))
    assert np.isfinite(found.loss)
