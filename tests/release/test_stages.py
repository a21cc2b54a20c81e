"""The list of stages: which a recipe has, in which order, and what each may read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.recipe.random_weights import RandomSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import AttackSettings, LatencySettings
from nemo_edge.recipe.targets import TensorRtRtxSettings, TensorRtSettings
from nemo_edge.release._inputs import read_inputs
from nemo_edge.release._stages import STAGES, LazyCheckpoint, stage_keys, stages_of

RANDOM = {"random_weights": RandomSettings(architecture="sd15")}
EVERYTHING: dict[str, Any] = {
    "attack": AttackSettings(starts=()),
    "latency": LatencySettings(),
    "tensorrt": TensorRtSettings(),
    "tensorrt_rtx": TensorRtRtxSettings(targets=("sm86",)),
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "calibrate localize policies export sessions steps measure"),
        ({"quantization": QuantizationSettings()}, "calibrate localize policies export ranges quantize sessions steps measure"),
        (
            {"quantization": QuantizationSettings(scheme="int8_weights")},
            "calibrate localize policies export quantize sessions steps measure",
        ),
        ({"hardening": HardeningSettings()}, "calibrate localize policies harden export sessions steps measure"),
        (EVERYTHING, "calibrate localize policies export tensorrt tensorrt_rtx sessions steps measure attack latency"),
        (
            {**EVERYTHING, "hardening": HardeningSettings(), "random_weights": RandomSettings(architecture="sd15")},
            "localize export tensorrt tensorrt_rtx sessions steps latency",
        ),
    ],
)
def test_a_recipe_has_the_stages_it_asks_for(tiny_recipe: Path, changes: dict[str, Any], expected: str) -> None:
    recipe = load_recipe(tiny_recipe).model_copy(update=changes)
    assert [stage.name for stage in stages_of(recipe)] == expected.split()
    kept = [stage.name for stage in stages_of(recipe) if stage.key is not None]
    assert list(stage_keys(recipe, read_inputs(recipe))) == kept


def test_a_bundle_of_baked_engines_alone_has_no_policies(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    baked = recipe.model_copy(update={"export": recipe.export.model_copy(update={"variants": ("baked",)})})
    assert {stage.name for stage in stages_of(recipe)} - {stage.name for stage in stages_of(baked)} == {"policies"}


def test_every_stage_says_what_it_does() -> None:
    for stage in STAGES:
        assert getattr(stage.work, "func", stage.work).__doc__, stage.name
        assert stage.key is None or getattr(stage.key, "func", stage.key).__doc__, stage.name


def test_the_checkpoint_is_opened_once_and_let_go(tiny_recipe: Path) -> None:
    recipe: Recipe = load_recipe(tiny_recipe)
    checkpoint = LazyCheckpoint(recipe.checkpoint)
    opened = checkpoint.open()
    assert checkpoint.open() is opened
    checkpoint.close()
    assert checkpoint.open() is not opened
