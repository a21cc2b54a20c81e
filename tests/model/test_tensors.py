"""Tensors that are absent, of another shape or quantized are refused by the headers, before a build begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_edge.model.checkpoint import Checkpoint, check_files, open_checkpoint
from nemo_edge.system.errors import InputError

UNET, VAE, TEXT = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
Change = Callable[[str, Tensor], Tensor | None]


@pytest.fixture
def sd(toy_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_folder, tmp_path / "sd"))


def rewrite(file: Path, change: Change) -> None:
    """Save a file with each tensor as `change` returns it, without those of which it returns none."""
    changed = {name: change(name, value) for name, value in load_file(file).items()}
    save_file({name: value for name, value in changed.items() if value is not None}, file)


def without(ending: str) -> Change:
    return lambda name, value: None if name.endswith(ending) else value


def quantized(name: str, value: Tensor) -> Tensor:
    return value.to(torch.int8) if value.ndim > 1 else value


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        (
            UNET,
            without("attentions.0.transformer_blocks.0.attn2.to_v.weight"),
            r"its unet lacks \d of \d+ tensors, first .*attn2\.to_v\.weight",
        ),
        (UNET, lambda name, value: value[:1].clone() if name == "conv_out.weight" else value, r"conv_out\.weight in the shape \(1, "),
        (UNET, quantized, r"is quantized \(.* is I8\)"),
        (VAE, without("decoder.conv_out.weight"), r"its vae lacks 1 of \d+ tensors, first decoder\.conv_out\.weight"),
        (TEXT, without("final_layer_norm.weight"), r"its text_encoder lacks 1 of \d+ tensors, first final_layer_norm\.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_without_being_read(sd: Path, file: str, change: Change, told: str) -> None:
    rewrite(sd / file, change)
    with pytest.raises(InputError, match=told):
        check_files(str(sd))
    with pytest.raises(InputError, match=told):
        open_checkpoint(str(sd))


def test_layers_that_a_configuration_alone_tells_of_are_missed(sd: Path) -> None:
    """transformers draws their weights at random."""
    path = sd / "text_encoder/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 9}))
    with pytest.raises(InputError, match=r"its text_encoder lacks \d+ of \d+ tensors, first encoder\.layers\.\d"):
        check_files(str(sd))


def test_scales_beside_a_matrix_are_told(sd: Path) -> None:
    weights = load_file(sd / UNET)
    save_file({**weights, "conv_in.scale_weight": torch.ones(())}, sd / UNET)
    with pytest.raises(InputError, match=r"is quantized \(conv_in\.scale_weight\)"):
        check_files(str(sd))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_floats_of_any_width_are_read_as_they_are(sd: Path, toy: Checkpoint, dtype: torch.dtype) -> None:
    rewrite(sd / UNET, lambda name, value: value.to(dtype))
    assert torch.equal(
        open_checkpoint(str(sd)).unet.get_parameter("conv_in.weight"), toy.unet.get_parameter("conv_in.weight").to(dtype).float()
    )


def test_former_names_of_a_vae_s_attention_are_read(sd: Path, toy: Checkpoint) -> None:
    former = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    weights = load_file(sd / VAE)
    for today, name in former.items():
        weights = {key.replace(today, name): value for key, value in weights.items()}
    assert any(".proj_attn." in key for key in weights)
    save_file(weights, sd / VAE)
    opened = open_checkpoint(str(sd))
    assert all(torch.equal(value, toy.vae.state_dict()[name]) for name, value in opened.vae.state_dict().items())


def test_more_tensors_than_are_wanted_are_left_out(sd: Path) -> None:
    rewrite(sd / TEXT, lambda name, value: value)
    save_file({**load_file(sd / TEXT), "vision_model.more": torch.zeros(2)}, sd / TEXT)
    assert check_files(str(sd)) == sd


def test_a_configuration_of_which_no_part_can_be_made_is_refused(sd: Path) -> None:
    path = sd / "unet/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_num_groups": 7}))
    with pytest.raises(InputError, match=r"its unet cannot be made of its config\.json"):
        check_files(str(sd))
