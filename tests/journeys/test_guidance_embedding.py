"""A UNet that is told the guidance scale, that of a consistency model (LCM): drawn with, as a graph, and searched for memories."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_toy_sd, save_toy_sdxl, toy_unet
from diffusers import DiffusionPipeline, LatentConsistencyModelPipeline, LCMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTokenizer

from nemo_edge.backends import onnxfiles
from nemo_edge.backends.torch import open_runner
from nemo_edge.export._component import export_component
from nemo_edge.localization.calibration import calibrate
from nemo_edge.localization.memorization import NoiseProbe
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, value_layers
from nemo_edge.model.surgery import gate
from nemo_edge.recipe.settings import ExportSettings, LocalizationSettings, SamplingSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.loop import denoise, generate
from nemo_edge.sampling.pipelines import eager_pipeline

PROMPTS, SEEDS = ["a red pig", "an owl"], [3, 4]
SETTINGS = SamplingSettings(steps=3, guidance=5.0, negative_prompt="a crab")
WIDTH = 7
"""Of the embedding; an odd one ends with a zero."""


def heeding(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The UNet with weights for what it is told, which are near 0 otherwise."""
    torch.nn.init.normal_(unet.time_embedding.cond_proj.weight, std=3, generator=torch.Generator().manual_seed(0))
    return unet


def small_unet() -> UNet2DConditionModel:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return heeding(toy_unet(sample_size=8, block_out_channels=(8, 8), layers_per_block=1, time_cond_proj_dim=WIDTH, **blocks))


@pytest.fixture(scope="module", params=["sd", "lcm", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    folder = tmp_path_factory.mktemp("told") / request.param
    if request.param == "sdxl":
        save_toy_sdxl(folder, tokenizer, time_cond_proj_dim=WIDTH, sample_size=8)
        heeding(UNet2DConditionModel.from_pretrained(folder, subfolder="unet")).save_pretrained(folder / "unet")
        return folder
    scheduler = LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    save_toy_sd(folder, tokenizer, small_unet(), scheduler)
    if request.param == "lcm":
        parts = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None).components
        LatentConsistencyModelPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


def in_diffusers(folder: Path, guidance: float) -> np.ndarray:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    call: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": guidance, "generator": generators, "output_type": "np"}
    return np.rint(pipeline(PROMPTS, **call).images * 255).astype(np.uint8)


@pytest.mark.parametrize("guidance", [0.0, 5.0, 8.5])
def test_it_draws_the_pictures_of_diffusers(folder: Path, checkpoint: Checkpoint, guidance: float) -> None:
    """With one row a picture whatever the guidance, so that a negative prompt says nothing."""
    pipeline, settings = eager_pipeline(checkpoint), SETTINGS.model_copy(update={"guidance": guidance})
    assert np.array_equal(generate(pipeline, PROMPTS, SEEDS, settings), in_diffusers(folder, guidance))
    first = next(denoise(pipeline, PROMPTS, SEEDS, settings))
    assert first.output_RCHW.shape[0] == len(PROMPTS)
    assert first.feed["timestep_cond"].shape == (len(PROMPTS), WIDTH)


def test_the_guidance_changes_the_pictures(checkpoint: Checkpoint) -> None:
    pipeline, other = eager_pipeline(checkpoint), SETTINGS.model_copy(update={"guidance": 8.5})
    assert not np.array_equal(generate(pipeline, PROMPTS, SEEDS, SETTINGS), generate(pipeline, PROMPTS, SEEDS, other))


@pytest.mark.parametrize("masked", [pytest.param(False, marks=pytest.mark.slow), True])
def test_its_graph_is_told_too(checkpoint: Checkpoint, tmp_path: Path, masked: bool) -> None:
    component = checkpoint.unet_component()
    if masked:
        component = gate(component, checkpoint.unet, value_layers(checkpoint.unet, "all"))
    export_component(component, tmp_path / "unet", ExportSettings(), {}, checkpoint.config.factor)
    feed = component.example(2)
    expected = open_runner(component)(feed)["out_sample"]
    for backend in ("onnxruntime", "openvino"):
        with onnxfiles.open_runner(tmp_path / "unet" / "model.onnx", EngineSettings(backend=backend)) as runner:
            assert runner.inputs["timestep_cond"][1] == WIDTH
            got, other = (runner({**feed, "timestep_cond": told})["out_sample"] for told in (feed["timestep_cond"], -feed["timestep_cond"]))
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()
        assert np.abs(other - expected).max() > 1e-2 * np.abs(expected).max()


def test_the_search_tells_it_the_guidance_of_its_settings(checkpoint: Checkpoint) -> None:
    settings = LocalizationSettings(samples=2, layers="all")
    assert NoiseProbe.of(checkpoint.config, settings).told.keys() == {"timestep_cond"}
    found = [calibrate(checkpoint, PROMPTS, s).highest for s in (settings, settings, settings.model_copy(update={"guidance": 3.0}))]
    assert found[0] == found[1] != found[2]


def test_no_other_unet_is_told(toy: Checkpoint) -> None:
    assert not toy.config.guidance_width
    assert "timestep_cond" not in toy.unet_component().example(1)
    assert NoiseProbe.of(toy.config, LocalizationSettings(samples=2)).told == {}
    assert replace(toy.config, unet={**toy.config.unet, "time_cond_proj_dim": 8}).told_guidance(7.0, 3)["timestep_cond"].shape == (3, 8)


@pytest.mark.parametrize("width", [8, 9, 256])
def test_it_is_told_alike_without_pytorch(toy: Checkpoint, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(toy.config, unet={**toy.config.unet, "time_cond_proj_dim": width})
    expected = config.told_guidance(8.5, 2)["timestep_cond"]
    monkeypatch.setattr("nemo_edge.model.configuration.importable", lambda *_: False)
    got = config.told_guidance(8.5, 2)["timestep_cond"]
    assert (got.shape, got.dtype) == ((2, width), np.float32)
    assert np.abs(got - expected).max() < 1e-3  # the angles are up to 7500, of which float32 has three decimals
