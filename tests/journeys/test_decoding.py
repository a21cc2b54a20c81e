"""Latents are decoded as diffusers' own pipelines do, whatever the VAE says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import other_vae
from dropin.test_load import assert_same_pictures, latents, make_xl
from sampling.test_loop import PROMPTS, SEEDS, in_diffusers, pipeline_of
from transformers import CLIPTokenizer

from nemo_edge.dropin.load import load_pipeline
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import generate

SETTINGS = SamplingSettings(steps=3)
STATISTICS = {"latents_mean": [-1.5, 0.5, 1.0, 2.0], "latents_std": [0.5, 2.0, 3.0, 1.5], "scaling_factor": 0.5}


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("said", [STATISTICS, {"latents_mean": STATISTICS["latents_mean"]}, {"shift_factor": 0.9}, None])
def test_pictures_are_diffusers_own_with_every_vae(
    toy: Checkpoint, toy_sdxl: Checkpoint, tmp_path: Path, family: str, said: dict[str, Any] | None
) -> None:
    folder = Path(shutil.copytree((toy if family == "sd" else toy_sdxl).source, tmp_path / "model"))
    if said is None:
        other_vae(folder)
    else:
        config = json.loads((folder / "vae/config.json").read_text())
        (folder / "vae/config.json").write_text(json.dumps({**config, **said}))
    checkpoint = open_checkpoint(str(folder))
    got = generate(pipeline_of(checkpoint), PROMPTS, SEEDS, SETTINGS)
    assert np.abs(got - 255 * in_diffusers(checkpoint, SETTINGS, "np")).max() < 0.51


def with_statistics(folder: Path) -> None:
    config = json.loads((folder / "vae/config.json").read_text())
    (folder / "vae/config.json").write_text(
        json.dumps({**config, "latents_mean": [-1.5, 0.5, 1.0, 2.0], "latents_std": [0.5, 2.0, 3.0, 1.5]})
    )


@pytest.mark.parametrize("change", [with_statistics, other_vae])
def test_every_vae_that_is_taken_is_exported_and_decodes_as_diffusers_does(
    tmp_path: Path, tokenizer: CLIPTokenizer, tiny_bundle: Path, change: Callable[[Path], object]
) -> None:
    model = make_xl(tmp_path, tokenizer, tiny_bundle, change=change)
    for backend in ("onnxruntime", "openvino"):
        with load_pipeline(model.bundle, "masked", backend=backend) as engines:
            engines.set_progress_bar_config(disable=True)
            assert_same_pictures(latents(engines, output_type="np"), latents(model.eager(), output_type="np"))
