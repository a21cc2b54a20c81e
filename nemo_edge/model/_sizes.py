"""The configurations of a single file: those of a shipped architecture, with the sizes that its tensors have.

Knows the original names of tensors (CompVis, Stability AI, OpenCLIP). What no shape tells is the architecture's: the number of heads,
the groups of the norms, the activation functions.
"""

from __future__ import annotations

__all__ = ["SECOND", "architecture_of", "sized"]

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from nemo_edge.model._filekinds import UNET, VAE, Contents
from nemo_edge.model.architectures import Configurations, configurations
from nemo_edge.system.errors import InputError

SECOND = "conditioner.embedders.1.model."
"""What the second text encoder of XL is called by."""
_TEXTS = {
    "sd15": ("cond_stage_model.transformer.text_model.",),
    "sd21": ("cond_stage_model.model.",),
    "sdxl": ("conditioner.embedders.0.transformer.text_model.", SECOND),
}
"""What the text encoders of an architecture are called by."""
_HEAD = 64
"""Channels of a head of CLIP's, and of the UNet's attention in 2.x and XL."""
_PENULTIMATE = 24
"""Layers of OpenCLIP's ViT-H, whose last Stable Diffusion 2.x does not use."""


def architecture_of(path: Path, contents: Contents) -> str:
    """Return which of the shipped architectures a whole model's file is of. Raises `InputError` for none."""
    found = [name for name, prefixes in _TEXTS.items() if all(contents.has(prefix) for prefix in prefixes)]
    if len(found) == 1:
        return found[0]
    raise InputError(f"{path}: its text encoder is none of Stable Diffusion 1.x, 2.x or XL; give a diffusers folder")


def sized(path: Path, contents: Contents, name: str) -> Configurations:
    """Return the configurations of architecture `name` with the sizes of a file's tensors.

    Raises `InputError` for a tensor that is not there, and for a UNet of other input channels than latent channels.
    """
    shapes = _Shapes(path, contents.shapes)
    found = deepcopy(configurations(name))
    found["vae/config.json"] |= _vae(shapes.below(*VAE))
    found["unet/config.json"] |= _unet(shapes.below(UNET), name)
    taken, latent = found["unet/config.json"]["in_channels"], found["vae/config.json"]["latent_channels"]
    if taken != latent:
        raise InputError(f"{path}: its UNet takes {taken} channels, its latents have {latent}: inpainting and editing models are not taken")
    texts = _TEXTS[name]
    for index, prefix in enumerate(texts):
        part = "text_encoder" if index == 0 else f"text_encoder_{index + 1}"
        own = shapes.below(prefix)
        found[f"{part}/config.json"] |= _openclip(own) if ".model." in prefix else _clip(own)
    return found


class _Shapes:
    """Shapes by name; a name that is not there is refused."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> None:
        self.path, self.shapes, self.prefix = path, shapes, prefix

    def below(self, *prefixes: str) -> _Shapes:
        prefix = next((p for p in prefixes if any(name.startswith(p) for name in self.shapes)), prefixes[0])
        own = {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return _Shapes(self.path, own, prefix)

    def of(self, name: str, dimensions: int) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None or len(shape) != dimensions:
            raise InputError(f"{self.path} is not whole: it lacks {self.prefix}{name} (a tensor of {dimensions} dimensions)")
        return shape

    def count(self, pattern: str) -> int:
        """How many different numbers stand where a pattern has its group, at the beginning of names."""
        return len({found.group(1) for name in self.shapes if (found := re.match(pattern, name))})


def _unet(shapes: _Shapes, name: str) -> dict[str, Any]:
    channels, depths, counts = _levels(shapes)
    attended = [depth > 0 for depth in depths]
    found: dict[str, Any] = {
        "in_channels": shapes.of("input_blocks.0.0.weight", 4)[1],
        "out_channels": shapes.of("out.2.weight", 4)[0],
        "block_out_channels": channels,
        "layers_per_block": counts[0],
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended],
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)],
    }
    keys = [shape for key, shape in shapes.shapes.items() if key.endswith("attn2.to_k.weight") and len(shape) == 2]
    if keys:
        found["cross_attention_dim"] = keys[0][1]
    if name != "sd15":
        found["attention_head_dim"] = [max(1, width // _HEAD) for width in channels]
    if name == "sdxl":
        wide = shapes.of("label_emb.0.0.weight", 2)[1]
        found |= {"transformer_layers_per_block": [max(1, depth) for depth in depths], "projection_class_embeddings_input_dim": wide}
    return found


def _levels(shapes: _Shapes) -> tuple[list[int], list[int], list[int]]:
    """Of each resolution of the UNet's way down: channels, transformer blocks of an attention (0: none), residual blocks."""
    channels, depths, counts = [0], [0], [0]
    for place in range(1, 1 + shapes.count(r"input_blocks\.([1-9]\d*)\.")):
        if f"input_blocks.{place}.0.op.weight" in shapes.shapes:
            channels, depths, counts = [*channels, 0], [*depths, 0], [*counts, 0]
            continue
        channels[-1] = shapes.of(f"input_blocks.{place}.0.out_layers.3.weight", 4)[0]
        depths[-1] = max(depths[-1], shapes.count(rf"input_blocks\.{place}\.1\.transformer_blocks\.(\d+)\."))
        counts[-1] += 1
    return channels, depths, counts


def _vae(shapes: _Shapes) -> dict[str, Any]:
    count = max(1, shapes.count(r"encoder\.down\.(\d+)\."))
    return {
        "block_out_channels": [shapes.of(f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(count)],
        "layers_per_block": max(1, shapes.count(r"encoder\.down\.0\.block\.(\d+)\.")),
        "latent_channels": shapes.of("decoder.conv_in.weight", 4)[1],
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
    }


def _clip(shapes: _Shapes) -> dict[str, Any]:
    words, width = shapes.of("embeddings.token_embedding.weight", 2)
    return {
        **_text(words, width, shapes.of("embeddings.position_embedding.weight", 2)[0]),
        "num_hidden_layers": max(1, shapes.count(r"encoder\.layers\.(\d+)\.")),
        "intermediate_size": shapes.of("encoder.layers.0.mlp.fc1.weight", 2)[0],
    }


def _openclip(shapes: _Shapes) -> dict[str, Any]:
    words, width = shapes.of("token_embedding.weight", 2)
    layers, second = max(1, shapes.count(r"transformer\.resblocks\.(\d+)\.")), shapes.prefix.startswith("conditioner.")
    return {
        **_text(words, width, shapes.of("positional_embedding", 2)[0]),
        "num_hidden_layers": _PENULTIMATE - 1 if layers == _PENULTIMATE and not second else layers,
        "intermediate_size": shapes.of("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        **({"projection_dim": shapes.of("text_projection", 2)[1]} if second else {}),
    }


def _text(words: int, width: int, length: int) -> dict[str, Any]:
    sizes = {"vocab_size": words, "hidden_size": width, "max_position_embeddings": length}
    return {**sizes, "num_attention_heads": max(1, width // _HEAD)}
