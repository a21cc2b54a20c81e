"""The stages' own contracts; `test_build` runs them one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.localization.calibration import Calibration
from nemo_edge.localization.stages import calibrate_stage
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.system.progress import Progress


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


def test_a_threshold_of_the_recipe_is_kept_and_prompts_are_counted(recipe: Recipe, tmp_path: Path) -> None:
    checkpoint, general = open_checkpoint(recipe.checkpoint.path), [Prompt(text=t) for t in ("a dog", "a cat", "a bus", "a key", "a car")]
    calibration = calibrate_stage(checkpoint, recipe.calibration, recipe.localization, general, tmp_path, Progress())
    assert calibration.threshold is not None
    assert calibration.threshold.value == recipe.calibration.threshold == 1e-6
    assert calibration.provenance.prompts == recipe.calibration.prompts == 4
    assert Calibration.load(tmp_path / "calibration.safetensors").provenance == calibration.provenance
