"""The recipes of published models in `engines/`: they load, take our general captions, and lack nothing here but the checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nemo_edge.model.architectures import configurations
from nemo_edge.recipe.prompts import read_prompts
from nemo_edge.recipe.quantization import LIMITS
from nemo_edge.recipe.recipe import Recipe, load_recipe, with_random_weights
from nemo_edge.release.build import plan
from nemo_edge.system.errors import InputError

ROOT = Path(__file__).parents[1]
DEMOS = {"demo", "demo-hardened", "demo-int8", "repeated"}
PUBLISHED = {"sd-turbo-cpu": "sd21", "sd15-cpu": "sd15", "sd15-int8": "sd15", "sd15-rtx": "sd15", "sdxl-rtx": "sdxl"}
"""Recipes of checkpoints on the hub, and the architecture whose random weights they take."""


def recipe_of(name: str) -> Recipe:
    return load_recipe(ROOT / "engines" / f"{name}.toml")


def test_these_are_all_there_are() -> None:
    assert {path.stem for path in (ROOT / "engines").glob("*.toml")} == DEMOS | set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_they_take_our_general_captions_and_there_are_enough(name: str) -> None:
    recipe = recipe_of(name)
    assert (recipe.name, recipe.output.resolve()) == (name, ROOT / "engines" / "out" / name)
    assert recipe.prompts.general.resolve() == ROOT / "calib" / "general.txt"
    assert len(read_prompts(recipe.prompts.general)) >= recipe.calibration.prompts + recipe.fidelity.general_prompts


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_they_lack_here_is_the_checkpoint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # whatever this machine has fetched
    recipe = recipe_of(name)
    with pytest.raises(InputError, match=rf"checkpoint {re.escape(recipe.checkpoint.path)} does not exist here and cannot be fetched"):
        plan(recipe)


@pytest.mark.parametrize(("name", "architecture"), PUBLISHED.items())
def test_they_take_random_weights(name: str, architecture: str) -> None:
    random = with_random_weights(recipe_of(name), architecture).random_weights
    assert random is not None
    assert random.architecture == architecture


@pytest.mark.parametrize("name", [name for name in PUBLISHED if recipe_of(name).tensorrt_rtx])
def test_their_plans_are_for_sizes_that_the_unet_halves(name: str) -> None:
    settings, unet = recipe_of(name).tensorrt_rtx, configurations(PUBLISHED[name])["unet/config.json"]
    assert settings is not None
    assert settings.targets == ("sm86", "sm89")
    (profile,) = settings.profiles
    own, multiple = 8 * unet["sample_size"], 8 * 2 ** (len(unet["block_out_channels"]) - 1)
    assert profile.height is not None
    assert profile.height == profile.width
    assert own == profile.height[1]
    assert [pixels % multiple for pixels in profile.height] == [0, 0, 0]


def test_the_one_in_integers_is_judged_and_timed_as_such() -> None:
    recipe = recipe_of("sd15-int8")
    assert recipe.quantization is not None
    assert (recipe.quantization.scheme, recipe.export.dtype) == ("int8", "fp32")
    assert (recipe.engine_tolerance, recipe.agreement_tolerance) == LIMITS["int8"]
    assert recipe.latency is not None
    assert recipe.uses_openvino
