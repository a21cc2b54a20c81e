"""The steps of a sampler are diffusers' where that is installed, and the bundle's own where it is not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import generate
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.sampling.steps import DiffusersSteps, TableSteps, open_steps
from nemo_edge.sampling.steptable import tabulate
from nemo_edge.system.errors import MissingDependency

PROMPTS = ["a pig on a red background", "saxophone falafel jubilee"]
SEEDS = [3, 4]
SETTINGS = SamplingSettings(steps=6)


@pytest.fixture
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_edge.sampling.steps.importable", lambda *_: False)


def test_diffusers_own_are_taken_where_it_is_installed(toy: Checkpoint) -> None:
    assert isinstance(open_steps(toy.config, SETTINGS, SEEDS, tabulate(toy.config, SETTINGS)), DiffusersSteps)


@pytest.mark.parametrize("scheduler", ["checkpoint", "euler_a"])
def test_a_table_draws_the_same_pictures(toy: Checkpoint, monkeypatch: pytest.MonkeyPatch, scheduler: str) -> None:
    settings = SamplingSettings(steps=6, scheduler=scheduler)  # type: ignore[arg-type]
    pipeline = replace(eager_pipeline(toy), table=tabulate(toy.config, settings))
    expected = generate(pipeline, PROMPTS, SEEDS, settings)
    monkeypatch.setattr("nemo_edge.sampling.steps.importable", lambda *_: False)
    got = generate(pipeline, PROMPTS, SEEDS, settings)
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1
    assert len(np.unique(got)) > 8


@pytest.mark.usefixtures("nothing_installed")
def test_steps_without_a_table_say_what_there_is(toy: Checkpoint) -> None:
    table = tabulate(toy.config, SETTINGS)
    assert isinstance(open_steps(toy.config, SETTINGS, SEEDS, table), TableSteps)
    with pytest.raises(MissingDependency, match=r"table is of scheduler = checkpoint, steps = 6.*nemo-edge\[build\]"):
        open_steps(toy.config, SETTINGS.model_copy(update={"steps": 7}), SEEDS, table)
    with pytest.raises(MissingDependency, match="has none: build it again"):
        open_steps(toy.config, SETTINGS, SEEDS)
