"""Triggers on embeddings made here: where the threshold lies, what triggers, and what cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from nemo_edge.bundle.triggers import FALSE_ALARMS, MARGIN, Trigger, calibrate_trigger, embed
from nemo_edge.system.errors import InputError

WIDTH, TOKENS = 8, 5
RNG = np.random.default_rng(0)
OFFSET = np.full(WIDTH, 3, np.float32)
"""What all texts share: without the centre every cosine would be near 1."""


def directions(count: int, axis: int, spread: float) -> np.ndarray:
    """Embeddings about one axis, [count, D]."""
    found = np.eye(WIDTH, dtype=np.float32)[axis] + spread * RNG.standard_normal((count, WIDTH)).astype(np.float32)
    return (OFFSET + found).astype(np.float32)


def general(count: int = 400) -> np.ndarray:
    return (OFFSET + RNG.standard_normal((count, WIDTH)) * np.array([0, 0, *[1] * (WIDTH - 2)])).astype(np.float32)


def told(embeddings: np.ndarray) -> np.ndarray:
    """Text states of these embeddings, [B, T, D]."""
    wave = np.linspace(-1, 1, TOKENS, dtype=np.float32)[:, None]
    return embeddings[:, None] + wave


PROMPTS = {"a": directions(3, 0, 0.01), "b": directions(2, 1, 0.01)}
PARAPHRASES = {"a": directions(20, 0, 0.05), "b": directions(20, 1, 0.05)}


def test_an_embedding_is_the_mean_of_the_states() -> None:
    embeddings = general(4)
    assert np.allclose(embed(told(embeddings)), embeddings, atol=1e-6)


@pytest.mark.parametrize("known", [True, False])
def test_apart_from_general_prompts_the_threshold_lies_in_the_middle(known: bool) -> None:
    others = general()
    trigger = calibrate_trigger(PROMPTS, PARAPHRASES, others, known=known)
    near = np.concatenate([trigger.scores(told(own))[:, i] for i, own in enumerate(PARAPHRASES.values())])
    far = trigger.scores(told(others)).max(axis=1)
    assert far.max() < trigger.threshold < near.min()
    assert trigger.rates is not None
    assert (trigger.rates.true_positives, trigger.rates.false_positives, trigger.rates.auroc) == (1, 0, 1)
    assert (trigger.rates.paraphrases, trigger.rates.general, trigger.rates.known) == (40, 400, known)


def test_each_prompt_triggers_its_own_cluster() -> None:
    trigger = calibrate_trigger(PROMPTS, PARAPHRASES, general(), known=True)
    scores = trigger.scores(told(np.concatenate([PROMPTS["a"], PROMPTS["b"]])))
    assert (scores >= trigger.threshold).tolist() == [[True, False]] * 3 + [[False, True]] * 2


def test_where_paraphrases_lie_among_general_prompts_few_of_these_may_trigger() -> None:
    others = general(1000)
    astray = {**PARAPHRASES, "a": np.concatenate([PARAPHRASES["a"], directions(1, 5, 0)])}
    trigger = calibrate_trigger(PROMPTS, astray, others, known=False)
    assert trigger.rates is not None
    assert 0 < trigger.rates.false_positives <= FALSE_ALARMS
    assert trigger.rates.true_positives < 1


def test_a_paraphrase_known_to_be_memorized_triggers_however_far_its_caption_is() -> None:
    stray = directions(1, 5, 0)
    astray = {**PARAPHRASES, "a": np.concatenate([PARAPHRASES["a"], stray])}
    trigger = calibrate_trigger(PROMPTS, astray, general(1000), known=True)
    near = trigger.scores(told(stray))[0] >= trigger.threshold
    assert near.tolist() == [True, False]
    assert trigger.rates is not None
    assert trigger.rates.true_positives < 1  # held against its caption, and not against itself
    assert trigger.threshold <= 1 - MARGIN


def test_states_that_are_not_finite_trigger_everything_and_those_of_another_model_are_refused() -> None:
    trigger = calibrate_trigger(PROMPTS, PARAPHRASES, general(), known=True)
    assert trigger.scores(np.full((1, TOKENS, WIDTH), np.nan, np.float32)).tolist() == [[1, 1]]
    with pytest.raises(InputError, match="knows text states of width 8, not 9: it is of another model"):
        trigger.scores(np.zeros((1, TOKENS, 9), np.float32))


def test_a_trigger_is_read_as_it_was_written_and_a_broken_one_is_refused() -> None:
    trigger = calibrate_trigger(PROMPTS, PARAPHRASES, general(), known=True)
    again = Trigger.model_validate_json(trigger.model_dump_json())
    assert again == trigger
    states = told(PARAPHRASES["b"])
    assert np.array_equal(again.scores(states), trigger.scores(states))
    for changes in ({"centre": "!"}, {"prompts": {"a": ""}}, {"width": 7}):
        with pytest.raises(ValidationError):
            Trigger.model_validate({**trigger.model_dump(), **changes})
