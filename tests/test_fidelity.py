"""Comparisons return numbers that are zero for equals and right for what differs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from nemo_edge.checkpoint import Checkpoint, value_layers
from nemo_edge.fidelity import compare_trajectories, general_drift, mitigation_of, pictures_of, score_left
from nemo_edge.localization import Localization
from nemo_edge.neurons import NeuronSet
from nemo_edge.recipe import LocalizationSettings, SamplingSettings
from nemo_edge.sampling import Pipeline, generate
from nemo_edge.stages import eager_pipeline
from nemo_edge.surgery import silenced

SAMPLING = SamplingSettings(steps=3, guidance=2.0)


@pytest.fixture(scope="module")
def eager(toy: Checkpoint) -> Pipeline:
    return eager_pipeline(toy)


def found(toy: Checkpoint, lists: list[list[int]], seeds: tuple[int, ...] = (0, 1)) -> Localization:
    neurons = NeuronSet.from_lists(value_layers(toy.unet), lists)
    return Localization(
        inputs="i",
        prompt="a pig",
        memorized=bool(seeds),
        threshold=0.4,
        score=0.9,
        seeds=seeds,
        initial=neurons,
        initial_score=0.3,
        refined=neurons,
        refined_score=0.3,
        floor=False,
        theta=5.0,
        k=0,
        evaluations=1,
        seconds=0.1,
    )


def test_a_pipeline_agrees_with_itself_exactly(eager: Pipeline) -> None:
    agreement = compare_trajectories(eager, eager, ["a pig", "a bus"], [0, 1], SAMPLING)
    assert agreement.largest_error == 0
    assert agreement.picture_levels == 0
    assert len(agreement.steps) == SAMPLING.steps


def test_an_error_is_relative_to_the_largest_value(toy: Checkpoint, eager: Pipeline) -> None:
    class Off:
        inputs = eager.unet.inputs

        def __call__(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"out_sample": eager.unet(feed)["out_sample"] * 1.01}

    off = Pipeline(toy.config, eager.text, Off(), eager.vae)  # type: ignore[arg-type]
    agreement = compare_trajectories(eager, off, ["a pig"], [0], SAMPLING)
    assert agreement.steps[0].output == pytest.approx(0.01, rel=1e-3)
    assert agreement.largest_error >= 0.0099


def test_the_score_left_is_one_without_neurons_and_lower_with_all(toy: Checkpoint, eager: Pipeline) -> None:
    settings = LocalizationSettings(samples=2)
    everything = [list(range(layer.width)) for layer in value_layers(toy.unet)]
    assert score_left(toy, eager, eager, found(toy, [[]] * 7), settings, None) == pytest.approx(1.0, abs=1e-6)

    class Silenced:
        inputs = eager.unet.inputs

        def __call__(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            with silenced(toy.unet, NeuronSet.from_lists(value_layers(toy.unet), everything)):
                return eager.unet(feed)

    blocked = Pipeline(toy.config, eager.text, Silenced(), eager.vae)  # type: ignore[arg-type]
    assert score_left(toy, eager, blocked, found(toy, everything), settings, None) < 1.0


def test_pictures_are_ordered_by_prompt_and_seed(eager: Pipeline) -> None:
    made = pictures_of(eager, ["a pig", "a bus"], [3, 4], SAMPLING)
    assert made.shape == (2, 2, 32, 32, 3)
    alone = generate(eager, ["a bus"], [3], SAMPLING)[0]
    assert np.abs(made[1, 0].astype(int) - alone).max() <= 1


def test_no_prompts_are_no_pictures(eager: Pipeline) -> None:
    height, width = eager.config.pixel_size
    assert pictures_of(eager, [], [0], SAMPLING).shape == (0, 1, height, width, 3)


def test_copies_are_counted_by_seed_and_other_memories_apart(toy: Checkpoint) -> None:
    rng = np.random.default_rng(0)
    training = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    noise = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    own = np.stack([training[0]] * 3)
    replaced = np.stack([training[1], noise[1], noise[2]])
    judged = mitigation_of(found(toy, [[1]] * 7), "VM", 0.2, {"before": own, "after": replaced, "random": own}, 0, training, 0.1)
    assert (judged.copies_before, judged.copies_after, judged.copies_random, judged.others_after) == (3, 0, 3, 1)
    assert judged.distance_before == 0
    assert judged.distance_after is not None
    assert judged.distance_after > 0.1
    assert judged.neurons == 7


def test_a_prompt_without_a_training_picture_has_no_counts(toy: Checkpoint) -> None:
    made = np.zeros((1, 32, 32, 3), np.uint8)
    judged = mitigation_of(found(toy, [[]] * 7), "", 0.2, {"before": made, "after": made, "random": made}, None, made, 0.1)
    assert judged.copies_before is None
    assert judged.others_after is None


def test_drift_is_one_minus_ssim() -> None:
    a = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    b = a.copy()
    b[1] = 255 - b[1]
    drift = general_drift(a, b)
    x, y = (torch.from_numpy(v[1:]).permute(0, 3, 1, 2).float() / 255 for v in (a, b))
    assert drift.per_prompt[0] == pytest.approx(0, abs=1e-6)
    assert drift.per_prompt[1] == pytest.approx(1 - float(structural_similarity_index_measure(x, y, data_range=1.0)), abs=1e-6)
    assert drift.mean == pytest.approx(sum(drift.per_prompt) / 2)
    assert drift.largest == max(drift.per_prompt)
