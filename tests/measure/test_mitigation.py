"""What is measured of a mitigation is zero for equals, counted right for copies, and what a hand computes."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from nemo_edge.localization.calibration import Statistics, activations
from nemo_edge.localization.localizer import Localization
from nemo_edge.measure.mitigation import (
    Drawn,
    Measurement,
    PromptMitigation,
    Shown,
    draw_prompts,
    general_drift,
    noise_difference,
    score_left,
    shown,
    z_scores,
)
from nemo_edge.measure.readings import WHOLE
from nemo_edge.measure.replication import Training, nearest_readings, tiled_distances
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.settings import LocalizationSettings, SamplingSettings
from nemo_edge.sampling.loop import Pipeline, denoise, generate
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.system.errors import BundleError

SAMPLING = SamplingSettings(steps=3, guidance=2.0)
SETTINGS = LocalizationSettings(samples=2)
PROMPTS = ["a pig", "a bus", "an owl"]


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
        samples=10,
        closest=0.1,
        exact=0,
        seconds=0.1,
    )


def whole(pictures: np.ndarray) -> Training:
    return Training.of([{WHOLE: picture} for picture in pictures], pictures.shape[1:3])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 32, 32, 3), dtype=np.uint8)


def test_the_score_left_is_one_without_neurons_and_lower_with_all(toy: Checkpoint, eager: Pipeline) -> None:
    everything = NeuronSet.from_lists(value_layers(toy.unet), [list(range(layer.width)) for layer in value_layers(toy.unet)])
    result = found(toy, [list(i) for i in everything.indices])
    before = noise_difference(toy, eager, result, SETTINGS)
    assert before.shape == (2, 4, 16, 16)
    assert score_left(before, before) == pytest.approx(1.0, abs=1e-6)
    with silenced(toy.unet, everything):
        after = noise_difference(toy, eager, result, SETTINGS)
    assert score_left(before, after) < 1 - 1e-4


def test_the_noise_difference_is_of_the_seeds_that_were_kept_or_of_all(toy: Checkpoint, eager: Pipeline) -> None:
    none = [[]] * 7
    both = noise_difference(toy, eager, found(toy, none), SETTINGS)
    second = noise_difference(toy, eager, found(toy, none, seeds=(1,)), SETTINGS)
    torch.testing.assert_close(second, both[1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(noise_difference(toy, eager, found(toy, none, seeds=()), SETTINGS), both, atol=0, rtol=0)
    assert noise_difference(toy, eager, found(toy, none), SETTINGS, shape=(4, 8, 16)).shape == (2, 4, 8, 16)


def test_pictures_are_ordered_by_prompt_and_seed(eager: Pipeline) -> None:
    told: list[int] = []
    made = draw_prompts(eager, PROMPTS[:2], [3, 4], SAMPLING, advance=told.append)
    assert (made.pictures.shape, made.pictures.dtype) == ((2, 2, 32, 32, 3), np.uint8)
    assert made.latents.shape == (2, 2, 4, 16, 16)
    alone = generate(eager, ["a bus"], [3], SAMPLING)[0]
    assert np.abs(made.pictures[1, 0].astype(int) - alone).max() <= 1
    *_, step = denoise(eager, ["a bus"], [3], SAMPLING)
    np.testing.assert_allclose(made.latents[1, 0], step.latents_BCHW[0], atol=1e-4)
    assert sum(told) == 4


def test_what_is_drawn_at_once_changes_no_picture(eager: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    together = draw_prompts(eager, PROMPTS, [0, 1], SAMPLING)
    monkeypatch.setattr("nemo_edge.measure.mitigation.pictures_at_once", lambda pixels: 4)  # 4 and 2, across the border of a prompt
    told: list[int] = []
    parts = draw_prompts(eager, PROMPTS, [0, 1], SAMPLING, advance=told.append)
    assert told == [4, 2]
    assert np.abs(parts.pictures.astype(int) - together.pictures).max() <= 1
    np.testing.assert_allclose(parts.latents, together.latents, atol=1e-4)


def test_copies_are_counted_by_seed_and_other_memories_apart() -> None:
    pictures, others = noise(2), noise(3, seed=1)
    training = whole(pictures)
    own = shown(np.stack([pictures[0]] * 3), 0, training, 0.1)
    assert (own.copies, own.others, own.distance, own.sscd) == (3, 0, 0, None)
    assert own.reading == WHOLE
    assert own.diversity == pytest.approx(0, abs=1e-6)
    replaced = shown(np.stack([pictures[1], others[1], others[2]]), 0, training, 0.1)
    assert (replaced.copies, replaced.others) == (0, 1)
    assert replaced.distance is not None
    assert replaced.distance > 0.1
    assert replaced.diversity > 0.5
    assert shown(np.stack([pictures[1]] * 2), 1, training, 0.1).copies == 2


def test_the_nearer_reading_counts_for_each_picture_and_the_nearest_is_told() -> None:
    crop, squashed, other, unrelated = noise(4)
    training = Training.of([{"centre crop": crop, "squashed": squashed}, {WHOLE: other}], (32, 32))
    near = np.clip(squashed.astype(int) + 9, 0, 255).astype(np.uint8)
    judged = shown(np.stack([near, crop, unrelated]), 0, training, 0.1)
    assert (judged.copies, judged.others, judged.reading) == (2, 0, "centre crop")
    assert judged.distance == pytest.approx(tiled_distances(near[None], squashed[None])[0, 0])
    assert shown(near[None], 0, training, 0.1).reading == "squashed"
    assert (len(training), shown(other[None], 0, training, 0.1).others) == (2, 1)


def test_each_picture_has_the_nearest_of_all_training_pictures_whoever_owns_it() -> None:
    crop, squashed, other, unrelated = noise(4)
    training = Training.of([{"centre crop": crop, "squashed": squashed}, {WHOLE: other}], (32, 32))
    pictures = np.stack([other, squashed, unrelated])
    distances = nearest_readings(pictures, training)[0]
    for own in (0, 1, None):
        found = shown(pictures, own, training, 0.1).nearest
        assert [near.training for near in found] == [1, 0, int(distances[2].argmin())]
        assert [near.distance for near in found] == [0, 0, float(distances[2].min())]
    assert shown(pictures, None, Training.of([], (32, 32)), None).nearest == ()


def test_the_distance_is_the_median_of_the_seeds() -> None:
    training = np.zeros((1, 32, 32, 3), np.uint8)
    pictures = np.stack([np.full((32, 32, 3), level, np.uint8) for level in (51, 102, 255)])
    judged = shown(pictures, 0, whole(training), 0.5)
    assert (judged.copies, judged.others) == (2, 0)
    assert judged.distance == pytest.approx(0.4)


def test_a_picture_that_two_prompts_share_is_one_copy_of_each() -> None:
    training = np.repeat(noise(1), 2, axis=0)
    judged = shown(np.stack([training[0], noise(1, seed=1)[0]]), 0, whole(training), 0.1)
    assert (judged.copies, judged.others, judged.returned) == (1, 0, 1)


def test_pictures_of_a_prompt_without_its_own_are_compared_with_all_others() -> None:
    training, other = noise(2), noise(1, seed=1)
    judged = shown(np.stack([training[0], other[0], training[1]]), None, whole(training), 0.1)
    assert (judged.copies, judged.others, judged.distance, judged.sscd) == (None, 2, None, None)
    assert (judged.compared, judged.returned) == (True, 2)


def test_a_copy_where_there_was_none_of_its_kind_is_new() -> None:
    def seen(copies: int | None, others: int | None) -> Shown:
        return Shown(copies=copies, others=others, diversity=0.5)

    assert not mitigation(before=seen(3, 1), after=seen(1, 2)).new
    assert not mitigation(before=seen(0, 0), after=seen(0, 0)).new
    assert mitigation(before=seen(0, 0), after=seen(1, 0)).new
    assert mitigation(before=seen(3, 0), after=seen(0, 1)).new
    assert mitigation(before=seen(None, 0), after=seen(None, 1)).new


@pytest.mark.parametrize("own", [None, 0])
def test_where_no_training_picture_is_known_nothing_is_counted(own: int | None) -> None:
    judged = shown(noise(1), own, whole(noise(1)), None)
    assert (judged.copies, judged.others, judged.distance, judged.compared) == (None, None, None, False)
    assert isnan(judged.diversity)  # of one seed
    assert isnan(Shown.model_validate_json(judged.model_dump_json()).diversity)


def drawn(pictures: np.ndarray, seed: int = 0) -> Drawn:
    latents = np.random.default_rng(seed).standard_normal((*pictures.shape[:2], 4, 4, 4), np.float32)
    return Drawn(pictures, latents)


def test_the_same_pictures_do_not_drift() -> None:
    before = drawn(noise(2, 3))
    drift = general_drift(before, before)
    assert (drift.mean, drift.largest) == pytest.approx((0, 0), abs=1e-6)
    assert drift.latents == 0
    assert drift.diversity_before == drift.diversity_after > 0.5


def test_drift_is_one_minus_ssim_of_each_prompt() -> None:
    a = noise(2, 2)
    b = a.copy()
    b[1, 0] = 255 - b[1, 0]
    drift = general_drift(drawn(a), drawn(b))
    x, y = (torch.from_numpy(v[1, :1]).permute(0, 3, 1, 2).float() / 255 for v in (a, b))
    off = 1 - float(structural_similarity_index_measure(x, y, data_range=1.0))
    assert drift.per_prompt == pytest.approx((0, off / 2), abs=1e-6)
    assert drift.mean == pytest.approx(sum(drift.per_prompt) / 2)
    assert drift.largest == max(drift.per_prompt)


def test_latents_drift_by_their_relative_distance() -> None:
    before = drawn(noise(2, 2))
    factors = np.array([[1.1, 1.2], [1.3, 1.0]], np.float32)[..., None, None, None]
    drift = general_drift(before, Drawn(before.pictures, before.latents * factors))
    assert drift.latents == pytest.approx((0.1 + 0.2 + 0.3) / 4, rel=1e-5)


def test_diversity_that_is_lost_is_seen() -> None:
    before = drawn(noise(2, 2))
    collapsed = before.pictures.copy()
    collapsed[:, 1] = collapsed[:, 0]
    drift = general_drift(before, Drawn(collapsed, before.latents))
    assert drift.diversity_after == pytest.approx(0, abs=1e-6)
    assert drift.diversity_before > 0.5
    assert isnan(general_drift(drawn(noise(2, 1)), drawn(noise(2, 1))).diversity_before)


def mitigation(**changes: Any) -> PromptMitigation:
    views = dict.fromkeys(("before", "after", "random"), Shown(diversity=0.5))
    values = {"prompt": "p", "kind": "", "neurons": 1, "seeds": 2, "score_before": 0.9, "score_after": 0.4, "score_after_eager": 0.375}
    return PromptMitigation.model_validate({**values, **views, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, 0.025), ({"distance_error": 0.01}, 0.025), ({"distance_error": 0.5}, 0.5), ({"score_after": 0.25}, 0.125)],
)
def test_the_agreement_is_the_larger_error(changes: dict[str, float], expected: float) -> None:
    assert mitigation(**changes).agreement_error == pytest.approx(expected)


@pytest.mark.parametrize("name", ["score_after", "score_after_eager", "distance_error"])
def test_an_agreement_with_what_is_not_a_number_is_not_a_number(name: str) -> None:
    broken = mitigation(**{"distance_error": 9.0, name: nan})
    assert isnan(broken.agreement_error)
    assert isnan(PromptMitigation.model_validate_json(broken.model_dump_json()).agreement_error)


def test_z_scores_are_the_activations_standardized(toy: Checkpoint) -> None:
    layers = value_layers(toy.unet)
    mean = [torch.full((layer.width,), 0.1 * i) for i, layer in enumerate(layers)]
    std = [torch.linspace(0.5, 1.5, layer.width) for layer in layers]
    lists = [[0, 5], [], [7], *[[]] * 3, [2]]
    got = z_scores(toy, Statistics(layers, tuple(mean), tuple(std)), found(toy, lists), SETTINGS)
    assert [(n.layer, n.neuron) for n in got] == [(0, 0), (0, 5), (2, 7), (6, 2)]
    raw = activations(toy.unet, toy.encode(["a pig"])["encoder_hidden_states"], "paper")
    for neuron in got:
        value = float(raw[neuron.layer][0, neuron.neuron])
        expected = (value - 0.1 * neuron.layer) / float(std[neuron.layer][neuron.neuron])
        assert neuron.z == pytest.approx(expected, rel=1e-5)


def test_a_z_score_by_hand(toy: Checkpoint) -> None:
    layer = value_layers(toy.unet)[0]
    text_TD = toy.encode(["a pig"])["encoder_hidden_states"][0].numpy()
    values_TW = text_TD @ toy.unet.get_submodule(layer.name).weight.numpy().T
    a_W = np.abs(values_TW).mean(axis=0)  # |activation|, the mean over the tokens
    statistics = Statistics(
        value_layers(toy.unet),
        tuple(torch.ones(entry.width) for entry in value_layers(toy.unet)),
        tuple(torch.full((entry.width,), 2.0) for entry in value_layers(toy.unet)),
    )
    (got,) = z_scores(toy, statistics, found(toy, [[3], *[[]] * 6]), SETTINGS)
    assert got.z == pytest.approx((a_W[3] - 1) / 2, abs=1e-5)


@pytest.mark.parametrize("content", [None, "{", '{"schema_version": 2, "variants": []}', '{"schema_version": 99}'])
def test_a_measurement_of_another_schema_is_refused(tmp_path: Path, written: Callable[[str, str], Path], content: str | None) -> None:
    if content is not None:
        written("measurement.json", content)
    with pytest.raises(BundleError, match=r"holds no measurement\.json that this nemo-edge reads: build the bundle again") as refused:
        Measurement.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_measurement_comes_back_from_its_bundle(tiny_bundle: Path) -> None:
    measured = Measurement.read(tiny_bundle)
    assert Measurement.model_validate_json(measured.model_dump_json()) == measured
