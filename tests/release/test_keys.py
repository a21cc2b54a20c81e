"""The keys of the stages: whatever the weights hang on is part of each."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from nemo_edge.recipe.authorship import ReportSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import LoraSettings
from nemo_edge.release import _keys
from nemo_edge.release._inputs import read_inputs
from nemo_edge.release._keys import bundle_key
from nemo_edge.release._stages import stage_keys
from nemo_edge.system.files import sha256_json


def test_a_lora_s_file_and_scale_are_part_of_every_key(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    first, second = (tmp_path / name / "lora.safetensors" for name in ("first", "second"))
    for value, path in enumerate((first, second)):
        path.parent.mkdir()
        save_file({"unet.mid_block.lora_A.weight": torch.full((1, 1), float(value))}, path)
    copy = Path(shutil.copy(first, tmp_path / "lora.safetensors"))

    def keys(*loras: LoraSettings) -> dict[str, str]:
        changed = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"loras": loras})})
        return stage_keys(changed, read_inputs(changed))

    one, half, other = (LoraSettings(path=path, scale=scale) for path, scale in ((first, 1.0), (first, 0.5), (second, 1.0)))
    found = [keys(), keys(one), keys(half), keys(other), keys(one, other), keys(other, one)]
    for stage in ("calibrate", "localize", "export", "measure"):
        assert len({each[stage] for each in found}) == len(found)
    assert keys(LoraSettings(path=copy)) == keys(one)


def test_what_is_skipped_of_the_text_encoders_is_part_of_every_key(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)

    def keys(clip_skip: int) -> dict[str, str]:
        changed = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"clip_skip": clip_skip})})
        return stage_keys(changed, read_inputs(changed))

    found = [keys(0), keys(1), keys(2)]
    for stage in ("calibrate", "localize", "export", "measure"):
        assert len({each[stage] for each in found}) == len(found)


def test_whose_it_is_makes_the_report_again_and_no_stage(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    named = recipe.model_copy(update={"report": ReportSettings(author="Ada")})
    keys = stage_keys(recipe, read_inputs(recipe))
    assert stage_keys(named, read_inputs(named)) == keys
    before = recipe.model_copy(update={"report": ReportSettings()})
    assert bundle_key(named, keys) != bundle_key(recipe, keys) == bundle_key(before, keys)
    without = sha256_json([[keys[stage] for stage in keys if stage not in ("calibrate", "localize")], _own(recipe), _keys._STEPS])
    assert bundle_key(recipe, keys) == without  # that of a bundle from before recipes could say it


def _own(recipe: Recipe) -> dict[str, object]:
    return recipe.model_dump(mode="json", include={"name", "gates", "engine", "sampling"})
