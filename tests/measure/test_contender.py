"""A contender in a process of its own opens its model, warms up and takes its turns; here it is asked in this process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemo_edge.measure._contender import OpenContender, Runnable, Setup
from nemo_edge.measure.latency import Visit
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import LatencySettings
from nemo_edge.recipe.targets import EngineSettings

SETTINGS = LatencySettings(runs=2, seconds=0.0, warmup_s=0.0, threads=1)


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


@pytest.fixture
def engine(tiny_bundle: Path) -> Runnable:
    return Runnable("masked", "engine", str(tiny_bundle), EngineSettings(threads=1))


def test_it_opens_warms_up_and_is_timed(engine: Runnable, recipe: Recipe) -> None:
    opened = OpenContender(engine, SETTINGS, resident=True)
    assert opened.open() == (32, 32)
    setup = Setup("unet", 1, recipe.sampling)
    calls, stable = opened.warm_up(setup)
    assert (calls >= 2, stable) == (True, False)
    found = opened.visit(setup)
    assert isinstance(found, Visit)
    assert len(found.samples_ms) == 1
    assert list(opened.calls) == [setup]
    about = opened.describe()
    assert (about.name, about.provider, about.threads, about.device_memory_mib) == ("masked", "cpu", 1, None)
    assert 0 < about.idle_memory_mib <= about.peak_memory_mib


def test_where_memory_is_short_the_model_is_closed_after_every_turn(engine: Runnable, recipe: Recipe) -> None:
    opened = OpenContender(engine, SETTINGS, resident=False)
    assert opened.open() == (32, 32)
    assert opened.pipeline is None
    setup = Setup("vae_decoder", 2, recipe.sampling)
    assert len(opened.visit(setup).samples_ms) == 1
    assert (opened.pipeline, opened.calls) == (None, {})


@pytest.mark.parametrize("target", ["text_encoder", "unet", "vae_decoder", "pipeline"])
def test_every_target_is_called(engine: Runnable, recipe: Recipe, target: str) -> None:
    opened = OpenContender(replace(engine, name="a name of its own", variant="baked"), SETTINGS, resident=True)
    assert opened.visit(Setup(target, 2, recipe.sampling)).samples_ms[0] > 0  # type: ignore[arg-type]
