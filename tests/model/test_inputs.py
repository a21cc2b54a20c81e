"""Whether a UNet wants only what it is fed, from its configuration alone."""

from __future__ import annotations

from typing import Any

import pytest

from nemo_edge.model._inputs import unfit_unet, unfit_vae

SD: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
XL = {**SD, "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 1280 + 6 * 256}
VAE = {"latent_channels": 4, "out_channels": 3, "scaling_factor": 0.18215}


def test_the_published_ones_want_what_they_are_fed() -> None:
    assert unfit_unet(SD, "sd", 0) == unfit_unet({**SD, "time_cond_proj_dim": 256}, "sd", 0) == ""
    assert unfit_unet(XL, "sdxl", 1280) == unfit_vae(VAE, 4) == ""


@pytest.mark.parametrize(
    ("config", "family", "reason"),
    [
        ({**SD, "num_class_embeds": 10}, "sd", "wants class labels (num_class_embeds is 10)"),
        ({**SD, "encoder_hid_dim_type": "image_proj"}, "sd", "wants projected or image embeddings"),
        ({**SD, "in_channels": 3}, "sd", "takes 3 channels and gives 4"),
        ({**SD, "mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "sd", "has a UNetMidBlock2DSimpleCrossAttn"),
        ({**SD, "addition_embed_type": "text"}, "sd", "wants more than the prompt"),
        ({**SD, "sample_size": None}, "sd", "(sample_size is null)"),
        (SD, "sdxl", "none of Stable Diffusion XL"),
        ({**XL, "projection_class_embeddings_input_dim": 2560}, "sdxl", "it is a refiner"),
    ],
)
def test_what_is_not_fed_is_said(config: dict[str, Any], family: Any, reason: str) -> None:
    assert reason in unfit_unet(config, family, 1280)


@pytest.mark.parametrize(
    ("changes", "channels", "reason"),
    [
        ({}, 9, "takes 9 channels (inpainting), and its VAE's latents have 4"),
        ({"out_channels": 1}, 4, "gives 1 channels"),
        ({"scaling_factor": 0}, 4, "scaling_factor is 0"),
        ({"latents_mean": [0.0]}, 4, "latents_mean are not 4 numbers"),
    ],
)
def test_a_vae_that_does_not_fit_is_said(changes: dict[str, Any], channels: int, reason: str) -> None:
    assert reason in unfit_vae({**VAE, **changes}, channels)
