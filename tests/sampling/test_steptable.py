"""A table of a sampler's steps is diffusers' scheduler, or there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.configuration import LCM_PIPELINE, Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.steps import DiffusersSteps, TableSteps
from nemo_edge.sampling.steptable import MOST_STEPS, STEPS_FILE, StepTable, read_table, tabulate, write_table
from nemo_edge.system.errors import BundleError, InputError

SEEDS = [1, 2]
SHAPE = (4, 8, 8)
OWN = ("DDPMScheduler", "DEISMultistepScheduler", "DPMSolverSinglestepScheduler", "HeunDiscreteScheduler", "TCDScheduler")


def assert_same(config: Configuration, settings: SamplingSettings) -> None:
    """Of outputs by chance, all that a table gives is what diffusers' scheduler gives."""
    table = tabulate(config, settings)
    assert table is not None
    theirs, ours = DiffusersSteps(config, settings, SEEDS), TableSteps(StepTable.model_validate_json(table.model_dump_json()), SEEDS)
    rng = np.random.default_rng(1)
    expected, got = theirs.begin(SHAPE), ours.begin(SHAPE)
    assert list(theirs.times) == list(ours.times)
    for index in range(len(theirs.times)):
        fed = theirs.fed(index, expected)
        assert np.abs(ours.fed(index, got) - fed).max() <= 2e-5 * np.abs(fed).max()
        output = rng.standard_normal(expected.shape, dtype=np.float32)
        expected, got = theirs.after(index, output, expected), ours.after(index, output, got)
        assert got.dtype == np.float32
        assert np.abs(got - expected).max() <= 2e-5 * np.abs(expected).max()


@pytest.mark.parametrize("steps", [4, 25])
@pytest.mark.parametrize("name", ["checkpoint", "ddim", "pndm", "euler", "euler_a", "dpmsolver++", "sde-dpmsolver++", "unipc", "lcm"])
def test_every_sampler_of_a_recipe_is_a_table(toy: Checkpoint, name: Any, steps: int) -> None:
    assert_same(toy.config, SamplingSettings(scheduler=name, steps=steps))


@pytest.mark.parametrize("name", OWN)
def test_so_is_a_checkpoint_s_own(toy: Checkpoint, name: str) -> None:
    own = {key: value for key, value in toy.config.scheduler.items() if key.startswith("beta") or key == "num_train_timesteps"}
    assert_same(replace(toy.config, scheduler={**own, "_class_name": name, "clip_sample": False}), SamplingSettings(steps=6))


def test_spacing_karras_and_what_is_predicted_are_in_it(toy: Checkpoint) -> None:
    config = replace(toy.config, scheduler={**toy.config.scheduler, "prediction_type": "v_prediction"})
    assert_same(config, SamplingSettings(scheduler="dpmsolver++", steps=8, karras=True))
    assert_same(config, SamplingSettings(scheduler="euler", steps=8, timestep_spacing="trailing"))


def test_the_first_consistency_model_s_last_latents_are_its_prediction(toy: Checkpoint) -> None:
    config = replace(toy.config, index={**toy.config.index, "_class_name": LCM_PIPELINE})
    assert_same(config, SamplingSettings(scheduler="lcm", steps=4))


def test_a_scheduler_that_clips_has_none(toy_sdxl: Checkpoint) -> None:
    scheduler = {key: value for key, value in toy_sdxl.config.scheduler.items() if key != "_use_default_values"}
    clipping = {**scheduler, "_class_name": "DDIMScheduler", "clip_sample": True}
    assert tabulate(replace(toy_sdxl.config, scheduler=clipping), SamplingSettings(steps=8)) is None


def test_so_many_steps_that_the_table_is_large_have_none(toy: Checkpoint) -> None:
    assert tabulate(toy.config, SamplingSettings(scheduler="ddim", steps=MOST_STEPS + 1)) is None


def test_it_knows_which_settings_it_is_of(toy: Checkpoint) -> None:
    settings = SamplingSettings(scheduler="euler", steps=4)
    table = tabulate(toy.config, settings)
    assert table is not None
    assert table.fits(settings.model_copy(update={"guidance": 1.0, "negative_prompt": "a crab", "height": 64}))
    for other in ({"steps": 5}, {"scheduler": "ddim"}, {"karras": True}, {"timestep_spacing": "trailing"}):
        assert not table.fits(settings.model_copy(update=other))
    assert table.describe() == "scheduler = euler, steps = 4"


def test_it_is_written_into_a_bundle_and_read_back(toy: Checkpoint, tmp_path: Path) -> None:
    assert read_table(tmp_path) is None
    settings = SamplingSettings(steps=4)
    assert write_table(tmp_path, toy.config, settings)
    assert read_table(tmp_path) == tabulate(toy.config, settings)


@pytest.mark.parametrize("spoiled", [{"draws": [0]}, {"scales": []}, {"times": [1.0]}, {"factors": [[1.0]]}, {"colour": "red"}])
def test_a_table_that_is_none_is_refused(toy: Checkpoint, tmp_path: Path, spoiled: dict[str, object]) -> None:
    write_table(tmp_path, toy.config, SamplingSettings(steps=4))
    path = tmp_path / STEPS_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **spoiled}))
    with pytest.raises(BundleError, match="build the bundle again"):
        read_table(tmp_path)


def test_steps_that_a_scheduler_does_not_take_are_refused(toy: Checkpoint) -> None:
    with pytest.raises(InputError, match="steps 1000"):
        tabulate(toy.config, SamplingSettings(scheduler="ddim", steps=1000))
