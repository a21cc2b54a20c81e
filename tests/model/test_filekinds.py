"""Files called by their name: from their first bytes, from the names of their tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import save_toy_sd
from originals import refused
from safetensors.torch import save_file
from transformers import CLIPTokenizer

from nemo_edge.model._filekinds import Contents, check_complete, is_lora, read_contents
from nemo_edge.model.checkpoint import open_checkpoint

Z = torch.zeros
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n"
UNET = {"model.diffusion_model.input_blocks.0.0.weight": Z(32, 4, 3, 3)}
VAE = {"first_stage_model.decoder.conv_in.weight": Z(32, 4, 3, 3)}
TEXT = {"cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": Z(8, 64)}


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.gguf"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "is a pointer of Git LFS.*git lfs pull"),
        (b"<!doctype html><title>429</title>", "is a web page"),
        (b"\n<HTML><head>", "is a web page"),
        (b'{"error": "Invalid username or password."}', "is a text in JSON"),
        (b"GGUF\x03\x00\x00\x00" + bytes(50), "is a GGUF file of quantized weights"),
        (b"", "it is empty"),
    ],
)
def test_a_file_is_called_by_its_first_bytes(written: Callable[[str, bytes], Path], name: str, content: bytes, words: str) -> None:
    refused(lambda: open_checkpoint(str(written(name, content))), words)
    refused(lambda: open_checkpoint(str(written(name, content)), allow_pickle=True), words)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": Z(2, 4)}, "is a LoRA, .*checkpoint.loras"),
        ({"unet.mid_block.attentions.0.proj_in.lora_A.weight": Z(2, 4)}, "is a LoRA"),
        ({"unet.down_blocks.0.attn1.processor.to_q_lora.down.weight": Z(2, 4)}, "is a LoRA"),
        ({"lora_unet_mid_block_attentions_0_proj_in.hada_w1_a": Z(2, 4)}, "is a LoRA"),
        ({"emb_params": Z(3, 768)}, "is a textual-inversion embedding"),
        ({"<cat-toy>": Z(768)}, "is a textual-inversion embedding"),
        ({"clip_l": Z(2, 768), "clip_g": Z(2, 1280)}, "is a textual-inversion embedding"),
        ({"control_model.time_embed.0.weight": Z(4, 4)}, "is a ControlNet"),
        ({"image_proj.proj.weight": Z(4, 4), "ip_adapter.1.to_k_ip.weight": Z(4, 4)}, "is an IP-Adapter"),
        ({"encoder.down.0.block.0.conv1.weight": Z(4, 4, 3, 3)}, "is a VAE alone"),
        ({"encoder.down_blocks.0.resnets.0.conv1.weight": Z(4, 4, 3, 3), "quant_conv.bias": Z(4)}, "is a VAE alone"),
        (VAE, "holds a VAE alone, without UNet and text encoder"),
        (UNET, "holds a UNet alone, without VAE and text encoder"),
        ({**UNET, **TEXT}, "holds a UNet and a text encoder alone, without VAE"),
        ({"input_blocks.0.0.weight": Z(4, 4), "output_blocks.0.0.weight": Z(4, 4)}, "is a UNet alone"),
        ({"down_blocks.0.resnets.0.conv1.bias": Z(4), "up_blocks.0.resnets.0.conv1.bias": Z(4)}, "is a UNet alone"),
        ({"text_model.embeddings.position_ids": Z(1, 77), "text_model.final_layer_norm.bias": Z(4)}, "is a text encoder alone"),
        ({"model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": Z(4)}, r"another architecture \(flux"),
        ({"conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": Z(4)}, "refiner of Stable Diffusion XL"),
        ({**UNET, "model.diffusion_model.input_blocks.0.0.weight": Z(320, 9, 3, 3)}, "an inpainting model"),
        ({**UNET, "edm_mean": Z(4)}, "EDM noise schedule"),
        ({"layer.weight": Z(4), "layer.bias": Z(4)}, "is not a Stable Diffusion file"),
        ({**UNET, **VAE, **TEXT}, "is not whole: it lacks first_stage_model.encoder.down.0.block.0.conv1.weight"),
        ({**UNET, **VAE, "cond_stage_model.transformer.embeddings.x": Z(4)}, "its text encoder is none of"),
    ],
)
def test_a_file_is_called_by_its_tensors(tmp_path: Path, tensors: dict[str, torch.Tensor], words: str) -> None:
    save_file(tensors, tmp_path / "file.safetensors")
    refused(lambda: open_checkpoint(str(tmp_path / "file.safetensors")), words)


@pytest.mark.parametrize("cut", [4, 60, -1])
def test_a_file_that_was_cut_is_called_so(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "file.safetensors"
    save_file({**UNET, **VAE}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    refused(lambda: open_checkpoint(str(path)), "no safetensors file" if cut == 4 else f"was cut short.*there are {len(whole[:cut]):,}")
    path.write_bytes(whole + b"more")
    refused(lambda: open_checkpoint(str(path)), "is damaged")


@pytest.mark.parametrize("length", [0x280, 0x47B, 0x57B20, 0x3C20])
def test_a_header_s_length_is_not_taken_for_text_or_a_pickle(written: Callable[[str, bytes], Path], length: int) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    path = written("file.safetensors", length.to_bytes(8, "little") + header + bytes(4))
    assert read_contents(path).shapes == {"a": (1,)}


@pytest.mark.parametrize("header", [b"{broken", json.dumps({"a": 1}).encode(), json.dumps({"a": {"shape": [1]}}).encode()])
def test_a_damaged_header_is_no_crash(written: Callable[[str, bytes], Path], header: bytes) -> None:
    path = written("file.safetensors", len(header).to_bytes(8, "little") + header)
    refused(lambda: open_checkpoint(str(path)), "is damaged")


def test_a_pickle_is_called_one_whatever_its_name(written: Callable[[str, bytes], Path]) -> None:
    for content in (b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(20)):
        refused(lambda c=content: open_checkpoint(str(written("model.safetensors", c))), "is a pickle")
    refused(lambda: open_checkpoint(str(written("model.ckpt", b"\x80\x02}")), allow_pickle=True), "cannot be read as a pickle of weights")
    refused(lambda: open_checkpoint(str(written("model.ckpt", b"nothing of it")), allow_pickle=True), "is not a Stable Diffusion file")


def test_an_embedding_in_a_pickle_is_called_one(tmp_path: Path) -> None:
    torch.save({"string_to_param": {"*": Z(2, 768)}, "name": "cat"}, tmp_path / "cat.pt")
    refused(lambda: open_checkpoint(str(tmp_path / "cat.pt"), allow_pickle=True), "is a textual-inversion embedding")


def test_weights_of_a_folder_are_called_by_their_name(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    folder = save_toy_sd(tmp_path / "sd", tokenizer)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(POINTER)
    refused(lambda: open_checkpoint(str(folder)), r"vae.diffusion_pytorch_model\.safetensors is a pointer of Git LFS")


def test_a_folder_of_a_lora_is_called_one(tmp_path: Path) -> None:
    save_file({"unet.mid_block.attentions.0.proj_in.lora.down.weight": Z(2, 4)}, tmp_path / "pytorch_lora_weights.safetensors")
    refused(lambda: open_checkpoint(str(tmp_path)), r"is a LoRA's \(pytorch_lora_weights\.safetensors\)")


def test_the_shapes_and_notes_of_a_whole_file_are_read(tmp_path: Path) -> None:
    save_file({"a.weight": Z(2, 3).half(), "b": Z(0)}, tmp_path / "file.safetensors", {"who": "me"})
    check_complete(tmp_path / "file.safetensors")
    assert read_contents(tmp_path / "file.safetensors") == Contents({"a.weight": (2, 3), "b": (0,)}, {"who": "me"})


def test_the_names_of_a_model_are_no_lora_s() -> None:
    assert not is_lora([*UNET, *VAE, *TEXT, "first_stage_model.decoder.up.0.upsample.conv.weight"])
