"""Comparisons of two runners return numbers that are zero for equals and right for what differs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from math import inf, isnan, nan

import numpy as np
import pytest

from nemo_edge.measure.fidelity import Agreement, StepError, compare_trajectories, trace_trajectory
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, generate
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.system.errors import InputError

SAMPLING = SamplingSettings(steps=4, guidance=2.0)
PROMPTS, SEEDS = ["a pig", "a bus"], [0, 1]


class Changed:
    """A UNet whose output is changed, from one call on."""

    def __init__(self, pipeline: Pipeline, factor: float, after: int = 0) -> None:
        self.runner, self.inputs, self.factor, self.after, self.calls = pipeline.unet, pipeline.unet.inputs, factor, after, 0

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        factor = self.factor if self.calls > self.after else 1.0
        return {"out_sample": self.runner(feed)["out_sample"] * np.float32(factor)}


@pytest.fixture(scope="module")
def eager(toy: Checkpoint) -> Pipeline:
    return eager_pipeline(toy)


def against(eager: Pipeline, factor: float, after: int = 0) -> Agreement:
    off = Pipeline(eager.config, eager.text, Changed(eager, factor, after), eager.vae)  # type: ignore[arg-type]
    return compare_trajectories(trace_trajectory(eager, PROMPTS, SEEDS, SAMPLING), off, PROMPTS, SEEDS, SAMPLING)


def test_a_trajectory_keeps_every_step_and_ends_in_the_pictures(eager: Pipeline) -> None:
    made = trace_trajectory(eager, PROMPTS, SEEDS, SAMPLING)
    assert [step.index for step in made.steps] == [0, 1, 2, 3]
    assert np.array_equal(made.pictures_BHW3, generate(eager, PROMPTS, SEEDS, SAMPLING))


def test_a_pipeline_agrees_with_itself_exactly(eager: Pipeline) -> None:
    agreement = compare_trajectories(trace_trajectory(eager, PROMPTS, SEEDS, SAMPLING), eager, PROMPTS, SEEDS, SAMPLING)
    assert [(s.forced, s.output, s.latents) for s in agreement.steps] == [(0, 0, 0)] * SAMPLING.steps
    assert (agreement.largest_error, agreement.picture_levels, agreement.psnr) == (0, 0, inf)
    assert agreement.ssim == pytest.approx(1, abs=1e-6)
    assert agreement.drift_start(0.0) is None
    assert (agreement.lpips is None) == (find_spec("lpips") is None)
    assert Agreement.model_validate_json(agreement.model_dump_json()) == agreement


def test_an_error_is_relative_to_the_largest_value(eager: Pipeline) -> None:
    first = against(eager, 1.01).steps[0]
    assert first.forced == first.output == pytest.approx(0.01, rel=1e-3)


def test_forced_errors_stay_where_own_errors_grow(eager: Pipeline) -> None:
    agreement = against(eager, 1.01)
    assert [s.forced for s in agreement.steps] == pytest.approx([0.01] * SAMPLING.steps, rel=1e-3)
    latents = [s.latents for s in agreement.steps]
    assert latents == sorted(latents)
    assert latents[-1] > 1.3 * latents[0] > 0
    assert agreement.largest_error == max(s.largest for s in agreement.steps) >= 0.0099


def test_drift_starts_where_the_runner_changes(eager: Pipeline) -> None:
    agreement = against(eager, 1.5, after=2)
    assert [s.latents == 0 for s in agreement.steps] == [True, True, False, False]
    assert agreement.drift_start(1e-6) == 2
    assert agreement.picture_levels > 0
    assert agreement.psnr < inf
    assert agreement.ssim < 1


def test_eager_without_numbers_is_said_to_be_the_checkpoint(eager: Pipeline) -> None:
    off = Pipeline(eager.config, eager.text, Changed(eager, nan, after=2), eager.vae)  # type: ignore[arg-type]
    trace_trajectory(eager, PROMPTS, SEEDS, SAMPLING).check_finite("a/model")
    with pytest.raises(
        InputError, match=r"the checkpoint itself gives latents .* at step 3 \(time .*\).*check that diffusers draws with a/model"
    ):
        trace_trajectory(off, PROMPTS, SEEDS, SAMPLING).check_finite("a/model")


def step(latents: float, output: float = 0.0) -> StepError:
    return StepError(time=1, forced=0, output=output, latents=latents)


def test_what_is_not_a_number_is_the_largest_error_and_drifts() -> None:
    agreement = Agreement(steps=(step(0.1), step(nan), step(0.3, 0.9)), picture_levels=0, ssim=1, psnr=inf)
    assert isnan(agreement.largest_error)
    assert isnan(agreement.steps[1].largest)
    assert agreement.drift_start(0.2) == 1
    assert agreement.drift_start(0.1) == 1
    assert agreement.drift_start(0.05) == 0
    back = Agreement.model_validate_json(agreement.model_dump_json())
    assert isnan(back.largest_error)
    assert back.psnr == inf
    assert agreement.model_copy(update={"steps": (step(0.1, 0.9),)}).largest_error == 0.9
