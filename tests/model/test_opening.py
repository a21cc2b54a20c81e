"""A diffusers folder is opened part by part: the files that are named, each by its own class."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import toy_unet
from diffusers import StableDiffusionPipeline

from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.system.errors import InputError


@pytest.fixture
def sd(toy_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_folder, tmp_path / "sd"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folder_of_a_variant_alone_is_opened(toy: Checkpoint, tmp_path: Path, dtype: torch.dtype) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy.source, safety_checker=None, torch_dtype=dtype)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    opened = open_checkpoint(str(tmp_path))
    assert sorted(name for name in opened.files if name.endswith("safetensors")) == [
        "text_encoder/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    weight = opened.unet.get_parameter("conv_in.weight")
    assert weight.dtype == torch.float32
    assert torch.equal(weight, toy.unet.get_parameter("conv_in.weight").to(dtype).float())
    shutil.copy(Path(toy.source) / "unet/diffusion_pytorch_model.safetensors", tmp_path / "unet")
    assert torch.equal(open_checkpoint(str(tmp_path)).unet.get_parameter("conv_in.weight"), toy.unet.get_parameter("conv_in.weight"))


def test_a_part_in_shards_is_opened(sd: Path, toy: Checkpoint) -> None:
    (sd / "unet/diffusion_pytorch_model.safetensors").unlink()
    toy_unet().save_pretrained(sd / "unet", max_shard_size="100KB")
    opened = open_checkpoint(str(sd))
    shards = [name for name in opened.files if "-of-" in name]
    assert len(shards) > 1
    assert "unet/diffusion_pytorch_model.safetensors.index.json" in opened.files
    assert torch.equal(opened.unet.get_parameter("conv_out.weight"), toy.unet.get_parameter("conv_out.weight"))
    (sd / shards[1]).unlink()
    with pytest.raises(InputError, match=rf"lacks {shards[1]}"):
        open_checkpoint(str(sd))


def test_a_part_without_weights_is_of_its_own_class(sd: Path) -> None:
    opened = open_checkpoint(str(sd), parts=("unet",))
    assert [next(module.parameters()).device.type for module in (opened.unet, opened.vae, *opened.text_encoders)] == ["cpu", "meta", "meta"]
