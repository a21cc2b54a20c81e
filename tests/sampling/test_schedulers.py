"""Pictures are those of diffusers' pipelines with their own schedulers, whichever a recipe names and whatever a checkpoint was saved with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    TCDScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from transformers import CLIPTokenizer

from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import denoise, generate, initial_noise
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.sampling.schedulers import make_scheduler, scheduled
from nemo_edge.system.errors import InputError
from tests.conftest import save_toy_sd, save_toy_sdxl, toy_unet

PROMPTS, SEEDS = ["a red pig", "an owl"], [3, 4]
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
NAMES: dict[str, tuple[str, Callable[..., SchedulerMixin]]] = {
    "ddim": ("ddim", DDIMScheduler.from_config),
    "pndm": ("pndm", PNDMScheduler.from_config),
    "euler": ("euler", EulerDiscreteScheduler.from_config),
    "euler_a": ("euler_a", EulerAncestralDiscreteScheduler.from_config),
    "dpmsolver++": ("dpmsolver++", DPMSolverMultistepScheduler.from_config),
    "unipc": ("unipc", UniPCMultistepScheduler.from_config),
    "lcm": ("lcm", LCMScheduler.from_config),
}
SAVED = {
    "pndm": lambda kind: PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1, prediction_type=kind),
    "euler": lambda kind: EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", prediction_type=kind),
    "zero terminal SNR": lambda kind: DDIMScheduler(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=False,
        prediction_type=kind,
        rescale_betas_zero_snr=kind == "v_prediction",
        timestep_spacing="trailing",
    ),
}


def small_unet(**changes: object) -> UNet2DConditionModel:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    return toy_unet(**{"sample_size": 8, "block_out_channels": (8, 8), "layers_per_block": 1, **blocks, **changes})


def saved(folder: Path, tokenizer: CLIPTokenizer, scheduler: SchedulerMixin, **changes: object) -> Path:
    return save_toy_sd(folder, tokenizer, small_unet(**changes), scheduler)


def in_diffusers(pipeline: Any, **options: Any) -> np.ndarray:
    """What diffusers' own call makes of the same prompts and seeds, start noise and all."""
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    call = {"num_inference_steps": 4, "guidance_scale": 5.0, "generator": generators, **options}
    pictures = pipeline(PROMPTS, output_type="np", **call).images
    return np.rint(pictures * 255).astype(np.uint8)


def apart(one: np.ndarray, other: np.ndarray) -> int:
    assert one.shape == other.shape
    return int(np.abs(one.astype(int) - other).max())


def ours(folder: Path, **settings: Any) -> np.ndarray:
    wanted = SamplingSettings(**{"steps": 4, "guidance": 5.0, **settings})
    return generate(eager_pipeline(open_checkpoint(str(folder))), PROMPTS, SEEDS, wanted)


@pytest.fixture(scope="module", params=[(name, kind) for name in SAVED for kind in ("epsilon", "v_prediction", "sample")], ids=str)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    name, kind = request.param
    return saved(tmp_path_factory.mktemp("saved") / "model", tokenizer, SAVED[name](kind))


def test_every_name_makes_the_pictures_of_diffusers_call(checkpoint: Path) -> None:
    """0 of 255 apart, the scheduler made of the pipeline's own configuration alone. A new pipeline of Stable Diffusion never clips."""
    found: dict[str, int] = {}
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, safety_checker=None)
    own, opened = pipeline.scheduler, eager_pipeline(open_checkpoint(str(checkpoint)))
    refused = {"pndm", "euler_a"} if own.config.prediction_type == "sample" else set()
    for name, (scheduler, make) in NAMES.items():
        settings = SamplingSettings(scheduler=scheduler, steps=4, guidance=5.0)  # type: ignore[arg-type]
        if name in refused:
            with pytest.raises(InputError, match="for a model that predicts 'sample'"):
                generate(opened, PROMPTS, SEEDS, settings)
            continue
        theirs = StableDiffusionPipeline(**{**pipeline.components, "scheduler": make(own.config)}, requires_safety_checker=False)
        found[name] = apart(generate(opened, PROMPTS, SEEDS, settings), in_diffusers(theirs))
    assert len(found) == len(NAMES) - len(refused)
    assert set(found.values()) == {0}, found
