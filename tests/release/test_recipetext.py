"""A recipe as text: TOML that is read again as it was meant, whatever the names in it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.release._found import Found, look
from nemo_edge.release._recipetext import recipe_text, schema_line

WHOLE = {
    "name": "x",
    "output": "out/x",
    "checkpoint": {"path": "m", "allow_pickle": True, "device": "cuda"},
    "prompts": {"memorized": "p/m.csv", "general": "p/g.txt"},
    "calibration": {"prompts": 5},
    "localization": {"layers": "all"},
    "export": {"variants": ["baked"], "dtype": "fp16"},
    "tensorrt_rtx": {"targets": ["sm86", "sm89"]},
    "sampling": {"scheduler": "euler", "steps": 3, "guidance": 2.5, "height": 64, "width": 32},
    "fidelity": {"general_prompts": 2},
}


@pytest.fixture(scope="module")
def found(toy_folder: Path) -> Found:
    return look(CheckpointSettings(path=str(toy_folder)))


def text(found: Found, recipe: Recipe, *engines: str, missing: tuple[str, ...] = (), file: str = "x.toml") -> str:
    return recipe_text(recipe, found, engines, missing, file, "recipe.schema.json")


def test_what_is_written_is_read_again(found: Found) -> None:
    recipe = Recipe.model_validate(WHOLE)
    assert Recipe.model_validate(tomllib.loads(text(found, recipe))) == recipe


def test_what_was_found_stands_beside_it(found: Found) -> None:
    made = text(found, Recipe.model_validate(WHOLE), "runs here: OpenVINO", missing=("p/m.csv",), file="my x.toml")
    assert made.splitlines()[0] == "#:schema recipe.schema.json"
    for line in (
        "# Check it: nemo-edge build 'my x.toml' --dry-run; then build it: nemo-edge build 'my x.toml'",
        "# Stable Diffusion 1.x or 2.x (StableDiffusionPipeline), predicts epsilon, pictures of 32 × 32 pixels",
        "# its own scheduler: DDIMScheduler",
        "# runs here: OpenVINO",
        "# still to be made: p/m.csv; docs/prompts.md says where lists come from",
        "# sm86: Ampere: RTX 30, A10, A40",
    ):
        assert line in made.splitlines()
    assert "80 in 7 value layers of the down and mid blocks" in made
    assert all(len(line) <= 110 for line in made.splitlines())


@pytest.mark.parametrize("evil", ['a\noutput = "/etc"', 'a"\n[gates]\n', "a\u2028b\x7f", "\\", "ö 🦉 'x'"])
def test_no_name_leaves_its_line(found: Found, evil: str) -> None:
    told = found.model_copy(update={"scheduler": evil, "notes": (evil,), "kind": evil})
    recipe = Recipe.model_validate({**WHOLE, "checkpoint": {"path": evil}, "prompts": {"memorized": evil, "general": "g"}})
    made = text(told, recipe, evil, missing=(evil,), file=evil)
    assert Recipe.model_validate(tomllib.loads(made)) == recipe
    assert schema_line(evil).count("\n") == 0
