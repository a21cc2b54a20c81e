"""Whole models in one file, with the original names of tensors (CompVis, Stability AI, OpenCLIP), from tiny diffusers models."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from nemo_edge.system.errors import InputError

WORDS = 49408
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_unet(**changes: object) -> UNet2DConditionModel:
    """A UNet of two resolutions whose heads and norms are those of Stable Diffusion 1.x."""
    torch.manual_seed(0)
    settings = {
        "sample_size": 64,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 64,
        "attention_head_dim": 8,
    }
    return UNet2DConditionModel(**{**settings, **changes}).eval().requires_grad_(False)


def original_vae() -> AutoencoderKL:
    torch.manual_seed(1)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(block_out_channels=(32, 64), layers_per_block=1, **kinds).eval().requires_grad_(False)


def original_text(cls: type = CLIPTextModel, **changes: object) -> CLIPTextModel:
    torch.manual_seed(2)
    settings = {"vocab_size": WORDS, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 1}
    fixed = {"max_position_embeddings": 77, "eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}
    return cls(CLIPTextConfig(**{**settings, **fixed, **changes})).eval().requires_grad_(False)


def of_sd1(unet: UNet2DConditionModel | None = None) -> dict[str, Tensor]:
    """The tensors of a whole Stable Diffusion 1.x."""
    return {
        **unet_names(unet or original_unet()),
        **vae_names(original_vae()),
        **clip_names(original_text(), "cond_stage_model.transformer."),
    }


def of_sd2(unet: UNet2DConditionModel | None = None) -> dict[str, Tensor]:
    """The tensors of a whole Stable Diffusion 2.x."""
    found = unet or original_unet(attention_head_dim=(1, 1), use_linear_projection=True)
    text = original_text(hidden_act="gelu")
    return {**unet_names(found), **vae_names(original_vae()), **openclip_names(text, "cond_stage_model.model.")}


def sdxl_unet() -> UNet2DConditionModel:
    return original_unet(
        sample_size=128,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(1, 1),
        cross_attention_dim=128,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=48 + 6 * 256,
    )


def of_sdxl(unet: UNet2DConditionModel | None = None) -> dict[str, Tensor]:
    """The tensors of a whole Stable Diffusion XL."""
    second = original_text(CLIPTextModelWithProjection, hidden_act="gelu", projection_dim=48)
    return {
        **unet_names(unet or sdxl_unet()),
        **vae_names(original_vae()),
        **clip_names(original_text(), "conditioner.embedders.0.transformer."),
        **openclip_names(second, "conditioner.embedders.1.model."),
    }


def write(path: Path, tensors: dict[str, Tensor], **notes: str) -> Path:
    """Write tensors and notes as a safetensors file."""
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, path, notes or None)
    return path


def refused(call: Callable[[], object], message: str) -> None:
    """Check that a call is refused in one line."""
    with pytest.raises(InputError, match=message) as found:
        call()
    assert "\n" not in str(found.value)


def unet_names(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    step, values = unet.config.layers_per_block + 1, unet.state_dict()
    names = {name: _unet_name(name, step) for name in values}
    attended = {name.split(".1.")[0] for name in names.values() if ".transformer_blocks." in name}
    names = {old: name.replace("UP", "2" if name.split(".UP")[0] in attended else "1") for old, name in names.items()}
    return {f"model.diffusion_model.{names[name]}": value for name, value in values.items()}


def _unet_name(name: str, step: int) -> str:
    for own, original in AROUND.items():
        if name.startswith(f"{own}."):
            return name.replace(own, original, 1)
    block, _, rest = name.partition(".")
    if block == "mid_block":
        kind, index, tail = rest.split(".", 2)
        return f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{_resnet(tail) if kind == 'resnets' else tail}"
    level, kind, index, tail = rest.split(".", 3)
    if kind == "downsamplers":
        return f"input_blocks.{(int(level) + 1) * step}.0.op.{tail.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{int(level) * step + step - 1}.UP.{tail}"
    place = int(level) * step + int(index) + (block == "down_blocks")
    side = "input_blocks" if block == "down_blocks" else "output_blocks"
    return f"{side}.{place}.0.{_resnet(tail)}" if kind == "resnets" else f"{side}.{place}.1.{tail}"


def _resnet(tail: str) -> str:
    own, _, rest = tail.partition(".")
    return f"{RESNET[own]}.{rest}"


def vae_names(vae: AutoencoderKL) -> dict[str, Tensor]:
    found = {}
    last = len(vae.config.block_out_channels) - 1
    for name, value in vae.state_dict().items():
        name = re.sub(r"down_blocks\.(\d+)\.resnets\.", r"down.\1.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.resnets\.", lambda m: f"up.{last - int(m[1])}.block.", name)
        name = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"up.{last - int(m[1])}.upsample.", name)
        name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0\.", r"down.\1.downsample.", name)
        name = re.sub(r"mid_block\.resnets\.(\d+)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", name)
        name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0." in name:
            name = name.replace("mid_block.attentions.0.", "mid.attn_1.").replace("group_norm", "norm").replace("to_out.0", "proj_out")
            name = re.sub(r"\.to_([qkv])\.", r".\1.", name)
            value = value[:, :, None, None] if value.ndim == 2 else value
        found[f"first_stage_model.{name}"] = value
    return found


def clip_names(text: CLIPTextModel, prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}text_model.{name.removeprefix('text_model.')}": value for name, value in text.state_dict().items()}


def openclip_names(text: CLIPTextModel, prefix: str) -> dict[str, Tensor]:
    own = {name.removeprefix("text_model."): value for name, value in text.state_dict().items()}
    found = {
        "token_embedding.weight": own["embeddings.token_embedding.weight"],
        "positional_embedding": own["embeddings.position_embedding.weight"],
        "ln_final.weight": own["final_layer_norm.weight"],
        "ln_final.bias": own["final_layer_norm.bias"],
    }
    if "text_projection.weight" in own:
        found["text_projection"] = own["text_projection.weight"].T
    for layer in range(text.config.num_hidden_layers):
        old, new = f"encoder.layers.{layer}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            found[f"{new}attn.in_proj_{kind}"] = torch.cat([own[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"])
            names = {"self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc"}
            for left, right in {**names, "mlp.fc2": "mlp.c_proj"}.items():
                found[f"{new}{right}.{kind}"] = own[f"{old}{left}.{kind}"]
    return {prefix + name: value for name, value in found.items()}
