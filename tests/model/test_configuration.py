"""A model without its weights: what is derived from its configurations, and that a bundle gives them back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from traces import traces

from nemo_edge.model.checkpoint import Checkpoint, open_parts
from nemo_edge.model.configuration import Configuration, check_pipeline
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.system.errors import BundleError, InputError


def test_sizes_follow_from_the_blocks(toy: Checkpoint, toy_sdxl: Checkpoint, demo_checkpoint: Checkpoint) -> None:
    facts = [(c.config.family, c.config.factor, c.config.latent_multiple, c.config.pixel_size) for c in (toy, toy_sdxl, demo_checkpoint)]
    assert facts == [("sd", 2, 8, (32, 32)), ("sdxl", 2, 4, (32, 32)), ("sd", 4, 8, (64, 64))]
    assert [c.config.prediction_type for c in (toy, demo_checkpoint)] == ["epsilon", "v_prediction"]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_what_is_saved_is_read_again(toy: Checkpoint, toy_sdxl: Checkpoint, tmp_path: Path, family: str) -> None:
    config = (toy if family == "sd" else toy_sdxl).config
    config.save(tmp_path, ["unet_masked"])
    again = Configuration.load(tmp_path)
    assert (again.family, again.latent_shape, again.factor) == (config.family, config.latent_shape, config.factor)
    assert dict(again.scheduler) == dict(config.scheduler)
    for ours, theirs in zip(again.token_ids(["a pig", ""]), config.token_ids(["a pig", ""]), strict=True):
        assert ours.shape == (2, 16)
        assert np.array_equal(ours, theirs)


def test_where_the_parts_were_read_from_is_not_saved(toy_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "model")
    noted: dict[str, str | bool] = {
        "_name_or_path": "/home/jo/lab",
        "name_or_path": "/home/jo/t",
        "special_tokens_map_file": "/root/.cache/t.json",
    }
    noted |= {"is_local": True, "local_files_only": True}
    for path in folder.rglob("*.json"):
        if "config" in path.name or path.name == "model_index.json":
            path.write_text(json.dumps({**json.loads(path.read_text()), **noted}))
    open_parts(CheckpointSettings(path=str(folder))).config.save(tmp_path / "bundle", ["unet", "unet_masked"])
    assert len(list((tmp_path / "bundle").rglob("*config.json"))) == 6
    assert list(traces(tmp_path / "bundle", tmp_path)) == []
    assert not noted.keys() & json.loads((tmp_path / "bundle" / "tokenizer" / "tokenizer_config.json").read_text()).keys()


def test_a_missing_part_is_named(toy: Checkpoint, tmp_path: Path) -> None:
    toy.config.save(tmp_path, ["unet"])
    (tmp_path / "vae_decoder" / "config.json").unlink()
    with pytest.raises(BundleError, match=r"lacks a part of its model: .*vae_decoder/config\.json"):
        Configuration.load(tmp_path)


def test_another_pipeline_is_refused() -> None:
    with pytest.raises(InputError, match="FluxPipeline; nemo-edge takes StableDiffusionPipeline, StableDiffusionXLPipeline"):
        check_pipeline("FluxPipeline")
