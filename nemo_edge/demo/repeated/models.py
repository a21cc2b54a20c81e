"""The network of the second checkpoint before training: wider value layers of more and narrower heads than the first one's.

As there, text enters through the paper's seven value layers only, and the network predicts v. Its VAE is the first one's. Its noise
ends without a picture in it (Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps Are Flawed"): where an object of a
quarter of the picture stands is seen through the noise of Stable Diffusion's last step, and a caption's word for it was not learned.
"""

from __future__ import annotations

__all__ = ["VALUE_WIDTHS", "make_scheduler", "make_text_encoder", "make_unet"]

from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from nemo_edge.demo import models

VALUE_WIDTHS = (48, 48, 96, 96, 160, 160, 160)
"""Neurons of the value layers, in order."""
_TEXT_WIDTH, _TEXT_LAYERS, _HEADS = 192, 3, 8


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of three layers, 192 wide."""
    return models.make_text_encoder(tokenizer, _TEXT_WIDTH, _TEXT_LAYERS)


def make_scheduler() -> DDIMScheduler:
    """The first checkpoint's noise schedule, stretched so that the last step is noise alone, from which sampling begins."""
    config = models.make_scheduler().config
    scheduler: DDIMScheduler = DDIMScheduler.from_config(config, rescale_betas_zero_snr=True, timestep_spacing="trailing")
    return scheduler


def make_unet() -> UNet2DConditionModel:
    """Three blocks with cross-attention on the way down and one in the middle, none on the way up."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(48, 96, 160),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        layers_per_block=2,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=_HEADS,
        norm_num_groups=16,
    )
