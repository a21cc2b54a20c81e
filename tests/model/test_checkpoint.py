"""Checkpoints of every family: value layers, conditioning as diffusers makes it, refusals."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_toy_sd, toy_unet
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DModel
from diffusers.image_processor import VaeImageProcessor
from transformers import CLIPTokenizer

from nemo_edge.backends.torch import open_runner
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, summary, value_layers, value_projections
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.system.errors import InputError, MissingDependency

PROMPTS = ["a pig on a red background", "", "saxophone " * 100]


def attention(block: str, index: int = 0, transformer: int = 0) -> str:
    return f"{block}.attentions.{index}.transformer_blocks.{transformer}.attn2.to_v"


PAPER_SD = [*(attention(f"down_blocks.{b}", i) for b in range(3) for i in range(2)), attention("mid_block")]


def test_the_papers_layers_are_down_then_mid(toy: Checkpoint) -> None:
    layers = value_layers(toy.unet)
    assert [layer.name for layer in layers] == PAPER_SD
    assert [layer.width for layer in layers] == [8, 8, 8, 8, 16, 16, 16]


def test_all_layers_add_the_up_blocks_last(toy: Checkpoint) -> None:
    names = [layer.name for layer in value_layers(toy.unet, "all")]
    assert names == PAPER_SD + [attention(f"up_blocks.{b}", i) for b in (1, 2, 3) for i in range(3)]


def test_projections_are_the_units_modules(toy: Checkpoint) -> None:
    assert all(toy.unet.get_submodule(name) is linear for name, linear in value_projections(toy.unet, "all"))


@pytest.mark.parametrize("mid", [None, "UNetMidBlock2D"])
def test_a_distilled_unet_has_one_layer_a_block_and_none_in_the_middle(mid: str | None) -> None:
    unet = toy_unet(layers_per_block=1, mid_block_type=mid)
    assert [layer.name for layer in value_layers(unet)] == [attention(f"down_blocks.{b}") for b in range(3)]
    assert len(value_layers(unet, "all")) == 3 + 6


def test_xl_has_a_layer_for_each_transformer_block(toy_sdxl: Checkpoint) -> None:
    down = [attention(f"down_blocks.{b}", i, t) for b, depth in ((1, 2), (2, 3)) for i in range(2) for t in range(depth)]
    assert [layer.name for layer in value_layers(toy_sdxl.unet)] == down + [attention("mid_block", 0, t) for t in range(3)]
    assert len(value_layers(toy_sdxl.unet, "all")) == 13 + 3 * (3 + 2)


@pytest.mark.parametrize("layers", ["paper", "all"])
def test_a_unet_without_cross_attention_is_refused_by_name(layers: str) -> None:
    unet = toy_unet(down_block_types=("DownBlock2D",) * 4, up_block_types=("UpBlock2D",) * 4, mid_block_type="UNetMidBlock2D")
    with pytest.raises(InputError, match=r"UNet2DConditionModel.* has no cross-attention"):
        value_layers(unet, layers)  # type: ignore[arg-type]


def test_encode_is_diffusers_own_for_sd(toy: Checkpoint) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy.source, safety_checker=None)
    expected, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    got = toy.encode(PROMPTS)
    assert list(got) == ["encoder_hidden_states"]
    assert got["encoder_hidden_states"].shape == (3, 16, 16)
    assert torch.equal(got["encoder_hidden_states"], expected)


def test_encode_is_diffusers_own_for_xl(toy_sdxl: Checkpoint) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(toy_sdxl.source, add_watermarker=False)
    hidden, _, pooled, _ = pipeline.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    size = toy_sdxl.config.pixel_size
    ids = pipeline._get_add_time_ids(size, (0, 0), size, dtype=torch.float32, text_encoder_projection_dim=12)
    got = toy_sdxl.encode(PROMPTS)
    assert {name: tuple(tensor.shape) for name, tensor in got.items()} == {
        "encoder_hidden_states": (3, 16, 32),
        "text_embeds": (3, 12),
        "time_ids": (3, 6),
    }
    assert torch.equal(got["encoder_hidden_states"], hidden)
    assert torch.equal(got["text_embeds"], pooled)
    assert torch.equal(got["time_ids"], ids.repeat(3, 1))


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_pictures_are_encoded_as_the_decoder_s_feed_takes_them(toy: Checkpoint, toy_sdxl: Checkpoint, family: str) -> None:
    """The mean that diffusers' VAE gives, scaled so that the loop's feed of the decoder is that mean again; of XL with its statistics."""
    checkpoint = {"sd": toy, "sdxl": toy_sdxl}[family]
    vae = {**checkpoint.config.vae, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0]}
    checkpoint = replace(checkpoint, config=replace(checkpoint.config, vae=vae))
    pictures = np.random.default_rng(0).integers(0, 256, (2, *checkpoint.config.pixel_size, 3), np.uint8)
    pictures.setflags(write=False)
    latents = checkpoint.encode_pictures(pictures)
    x = VaeImageProcessor().preprocess(pictures.astype(np.float32) / 255)
    with torch.no_grad():
        expected = checkpoint.vae.encode(x).latent_dist.mean
    fed = eager_pipeline(checkpoint).decoder_feed(latents.numpy())["latent_sample"]
    np.testing.assert_allclose(fed, expected.numpy(), atol=1e-5)
    assert not np.allclose(latents.numpy(), expected.numpy(), atol=1e-2)


def test_each_prompt_is_encoded_on_its_own(toy: Checkpoint) -> None:
    together, alone = toy.encode(PROMPTS), [toy.encode([p])["encoder_hidden_states"] for p in PROMPTS]
    torch.testing.assert_close(together["encoder_hidden_states"], torch.cat(alone), rtol=0, atol=1e-6)


def test_fp16_weights_are_held_in_float32(tmp_path: Path, toy: Checkpoint) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(toy.source, safety_checker=None, dtype=torch.float16)
    pipeline.save_pretrained(tmp_path / "half")
    opened = open_checkpoint(str(tmp_path / "half"))
    for module, full in ((opened.unet, toy.unet), (opened.vae, toy.vae), (opened.text_encoders[0], toy.text_encoders[0])):
        weights = list(zip(module.parameters(), full.parameters(), strict=True))
        assert all(w.dtype == torch.float32 and not w.requires_grad for w, _ in weights)
        assert all(torch.equal(w, f.half().float()) for w, f in weights)
        assert not module.training


def test_the_example_feed_fits_every_component(toy: Checkpoint, toy_sdxl: Checkpoint) -> None:
    for component in (*toy.components(), *toy_sdxl.components()):
        feed = component.example(2)
        outputs = component.module(*(torch.from_numpy(feed[port.name]) for port in component.inputs))
        assert len(outputs) == len(component.outputs)
        assert all(np.isfinite(output.detach().numpy()).all() for output in outputs)


def test_the_hash_is_that_of_the_files(toy_folder: Path, tmp_path: Path, toy: Checkpoint) -> None:
    copy = Path(shutil.copytree(toy_folder, tmp_path / "copy"))
    assert open_checkpoint(str(copy)).content_hash() == toy.content_hash()
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    assert open_checkpoint(str(copy)).content_hash() != toy.content_hash()


def test_the_summary_marks_the_papers_layers(toy: Checkpoint) -> None:
    found = summary(toy)
    assert found["pipeline"] == "StableDiffusionPipeline"
    assert [v["name"] for v in found["value_layers"] if v["paper"]] == PAPER_SD
    assert found["parameters"]["unet"] == sum(p.numel() for p in toy.unet.parameters())


def test_a_pipeline_of_another_class_is_refused_by_name(tmp_path: Path) -> None:
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
        add_attention=False,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    with pytest.raises(InputError, match=r"DDPMPipeline; nemo-edge takes StableDiffusionPipeline, StableDiffusionXLPipeline"):
        open_checkpoint(str(tmp_path / "ddpm"))


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt"])
def test_a_pickle_file_is_refused(written: Callable[[str, bytes], Path], name: str) -> None:
    with pytest.raises(InputError, match=r"is a pickle, .*--allow-pickle"):
        open_checkpoint(str(written(name, b"\x80\x02.")))


def test_a_device_that_is_not_here_is_told_before_anything_is_opened() -> None:
    with pytest.raises(InputError, match="device 'tpu' is not known: give cpu or cuda"):
        open_checkpoint("nothing", device="tpu")
    if not torch.cuda.is_available():
        with pytest.raises(MissingDependency, match="device 'cuda' was asked for, but PyTorch sees no NVIDIA GPU here"):
            open_checkpoint("nothing", device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_float32_is_float32(demo_checkpoint: Checkpoint) -> None:
    there = open_checkpoint(demo_checkpoint.source, device="cuda").unet_component()
    example = demo_checkpoint.unet_component().example(2)
    here = open_runner(demo_checkpoint.unet_component())(example)["out_sample"]
    assert abs(open_runner(there)(example)["out_sample"] - here).max() < 1e-4


@pytest.mark.parametrize("name", ["model.onnx", "recipe.toml"])
def test_a_file_of_another_kind_is_not_called_a_pickle(written: Callable[[str, bytes], Path], name: str) -> None:
    with pytest.raises(InputError, match=r"is no checkpoint: give a diffusers folder or a \.safetensors file"):
        open_checkpoint(str(written(name, b"text")))


def test_a_folder_of_pickles_is_refused(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    folder = save_toy_sd(tmp_path / "sd", tokenizer)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save(toy_unet().state_dict(), weights.with_suffix(".bin"))
    with pytest.raises(InputError, match=r"diffusion_pytorch_model\.bin is a pickle"):
        open_checkpoint(str(folder))
    assert torch.equal(open_checkpoint(str(folder), allow_pickle=True).unet.get_parameter("conv_in.weight"), toy_unet().conv_in.weight)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file at all"])
def test_a_broken_safetensors_file_is_refused(written: Callable[[str, bytes], Path], content: bytes) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors is not a Stable Diffusion file"):
        open_checkpoint(str(written("model.safetensors", content)))


def test_broken_weights_in_a_folder_are_refused(tmp_path: Path, toy_folder: Path) -> None:
    folder = Path(shutil.copytree(toy_folder, tmp_path / "cut"))
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match=r"cannot be opened"):
        open_checkpoint(str(folder))


def test_what_is_not_a_checkpoint_is_refused_with_its_reason(tmp_path: Path, written: Callable[[str, str], Path]) -> None:
    with pytest.raises(InputError, match=r"is empty"):
        open_checkpoint(str(tmp_path))
    written("readme.txt", "hello")
    with pytest.raises(InputError, match=r"has no model_index\.json"):
        open_checkpoint(str(tmp_path))
    written("model_index.json", '{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match=r"holds no weights"):
        open_checkpoint(str(tmp_path))
    with pytest.raises(InputError, match=r"does not exist"):
        open_checkpoint(str(tmp_path / "nowhere"))
