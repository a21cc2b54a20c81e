"""Whether a UNet wants only what it is fed, and its VAE's decoder what comes out of it; from configurations alone.

A UNet is fed latents, a time, the prompt's states, and as XL the pooled prompt and six sizes; one of LCM its guidance too.
"""

from __future__ import annotations

__all__ = ["unfit_unet", "unfit_vae"]

import json
import math
from collections.abc import Mapping
from typing import Any, Literal

_TIME_IDS = 6
_CHANNELS = {5: "depth-to-image", 7: "an upscaler", 8: "editing by instructions", 9: "inpainting"}
"""What UNets of other channels than the latents' are for."""
_BLOCKS = (
    "DownBlock2D",
    "UpBlock2D",
    "AttnDownBlock2D",
    "AttnUpBlock2D",
    "ResnetDownsampleBlock2D",
    "ResnetUpsampleBlock2D",
    "CrossAttnDownBlock2D",
    "CrossAttnUpBlock2D",
    "UNetMidBlock2D",
    "UNetMidBlock2DCrossAttn",
    None,
)
"""Blocks that attend to the prompt by value neurons of `attn2`, or not at all."""
_UNFED = {
    "class_embed_type": "class labels",
    "num_class_embeds": "class labels",
    "encoder_hid_dim_type": "projected or image embeddings",
    "encoder_hid_dim": "projected or image embeddings",
    "dual_cross_attention": "two conditions",
}
"""Keys of a UNet's configuration by which it wants what it is not fed."""


def unfit_unet(config: Mapping[str, Any], family: Literal["sd", "sdxl"], pooled: int) -> str:
    """Return what is wrong with a UNet's configuration; nothing where it is taken. `pooled` is the width of XL's pooled prompt."""
    for key, wanted in _UNFED.items():
        if config.get(key):
            return f"its UNet wants {wanted} ({key} is {config[key]}), and nemo-edge feeds it latents, time and prompt"
    if config["out_channels"] != config["in_channels"] and config["in_channels"] not in _CHANNELS:
        return f"its UNet takes {config['in_channels']} channels and gives {config['out_channels']}: it is no text-to-image UNet"
    blocks = (*config["down_block_types"], config["mid_block_type"], *config["up_block_types"])
    other = next((block for block in blocks if block not in _BLOCKS), None)
    if other is not None:
        return f"its UNet has a {other}, whose attention to the prompt nemo-edge does not know"
    return _unfit_added(config, family, pooled) or _unfit_size(config["sample_size"], family)


def unfit_vae(config: Mapping[str, Any], channels: int) -> str:
    """Return what is wrong with a VAE's configuration beside a UNet of so many channels; nothing where it is taken."""
    own = config["latent_channels"]
    if channels != own:
        kind = f" ({_CHANNELS[channels]})" if channels in _CHANNELS else ""
        return f"its UNet takes {channels} channels{kind}, and its VAE's latents have {own}: nemo-edge takes text-to-image models alone"
    if config["out_channels"] != 3:
        return f"its VAE gives {config['out_channels']} channels; nemo-edge takes VAEs that give pictures of 3"
    if config.get("upsampling_scaling_factor", 2) != 2:
        return f"its VAE's upsampling_scaling_factor is {config['upsampling_scaling_factor']}; nemo-edge takes 2"
    factor = config.get("scaling_factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not math.isfinite(factor) or not factor:
        return f"its VAE's scaling_factor is {json.dumps(factor)}: give the number its latents are divided by"
    return _unfit_statistics(config, channels)


def _unfit_added(config: Mapping[str, Any], family: Literal["sd", "sdxl"], pooled: int) -> str:
    """What is wrong with what a UNet adds to the time."""
    kind = config.get("addition_embed_type")
    if family == "sd":
        return f"its UNet wants more than the prompt (addition_embed_type is {kind}), and is no XL" if kind else ""
    if kind != "text_time":
        return f"its UNet is none of Stable Diffusion XL: addition_embed_type is {kind}, and XL's is text_time"
    width, wanted = int(config.get("addition_time_embed_dim") or 0), config.get("projection_class_embeddings_input_dim")
    if wanted != pooled + _TIME_IDS * width:
        return (
            f"its UNet adds {wanted} values to the time, where a pooled prompt of {pooled} and {_TIME_IDS} sizes of {width} are "
            f"{pooled + _TIME_IDS * width}: it is a refiner, or of another model than its text encoders"
        )
    return ""


def _unfit_size(size: object, family: Literal["sd", "sdxl"]) -> str:
    pair = size if isinstance(size, (list, tuple)) else (size, size)
    if len(pair) == 2 and all(isinstance(side, int) and side > 0 for side in pair):
        return ""
    side = {"sd": 64, "sdxl": 128}[family]
    return (
        f"its UNet does not say the height and width of its training pictures (sample_size is {json.dumps(size)}): write them in latents "
        f'into unet/config.json, as "sample_size": [{side}, {side}] for pictures of {8 * side} x {8 * side}'
    )


def _unfit_statistics(config: Mapping[str, Any], channels: int) -> str:
    for key in ("latents_mean", "latents_std"):
        values = config.get(key)
        if values is not None and (not isinstance(values, (list, tuple)) or len(values) != channels):
            return f"its VAE's {key} are not {channels} numbers, one a channel of the latents"
    return ""
