"""The parts of the demo's pipeline before training: a Stable Diffusion in miniature, with the paper's seven value layers."""

from __future__ import annotations

__all__ = [
    "CONTEXT",
    "VALUE_WIDTHS",
    "WORDS",
    "make_scheduler",
    "make_text_encoder",
    "make_tokenizer",
    "make_unet",
    "make_vae",
    "text_attentions",
]

import json
from collections.abc import Set
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nemo_edge.demo.captions import COLOURS, EARLY_GLYPHS, MEMORIZED
from nemo_edge.demo.glyphs import SIZE

CONTEXT = 16
"""Tokens of a prompt."""
VALUE_WIDTHS = (64, 64, 96, 96, 128, 128, 128)
"""Neurons of the value layers, in order: two layers in each of the first three blocks, one in the mid block."""
WORDS = frozenset({"a", "on", "background", *COLOURS, *EARLY_GLYPHS, *(w for c in MEMORIZED for w in c.text.split())})
"""Of the captions."""


def make_tokenizer(folder: Path, words: Set[str] = WORDS) -> CLIPTokenizer:
    """Write and open a CLIP tokenizer of CONTEXT tokens: one token for each of `words`, letters for all else."""
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens, merges = [*letters, *(f"{c}</w>" for c in letters)], []
    for word in sorted(words):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts.pop(-2), parts.pop(-1))
            parts.append("".join(pair))
            if parts[-1] not in tokens:
                tokens.append(parts[-1])
                merges.append(pair)
    merges.sort(key=lambda pair: len("".join(pair)))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, indent=0) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=CONTEXT)


def make_vae() -> AutoencoderKL:
    """A VAE of 4× reduction: 64×64 pixels ↔ 4×16×16 latents."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )
    nn.init.constant_(vae.quant_conv.bias.data[4:], -6.0)  # start with hardly any noise on the latents
    return vae


def make_text_encoder(tokenizer: CLIPTokenizer, width: int = 128, layers: int = 2) -> CLIPTextModel:
    """A CLIP text encoder whose heads are 32 wide."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        projection_dim=width,
    )
    return CLIPTextModel(config)


def make_unet() -> UNet2DConditionModel:
    """Stable Diffusion's UNet in miniature; text enters through the paper's seven value layers only."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 128, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) * 4,
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction, as Stable Diffusion 2 has it."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def text_attentions(unet: UNet2DConditionModel) -> list[Any]:
    """Return the UNet's cross-attentions in order, whose `to_v` are the value layers."""
    return [module for name, module in unet.named_modules() if name.endswith("attn2")]
