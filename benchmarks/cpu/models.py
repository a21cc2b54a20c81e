"""What the benchmarks run on: the demo checkpoint, one of Stable Diffusion 1.5's size with random weights, and their engines."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nemo_edge import demo
from nemo_edge.backends import onnxruntime
from nemo_edge.export._component import export_component
from nemo_edge.model.checkpoint import open_checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import gate, silenced
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.settings import ExportSettings

DEMO = demo.CHECKPOINT
NEURONS = 16
"""Silenced ones; which they are does not change a time."""


def sd15_unet() -> UNet2DConditionModel:
    """The UNet of Stable Diffusion 1.5 (859.5 M parameters), its weights random."""
    torch.manual_seed(0)
    return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).eval().requires_grad_(False)


def save_sd15(folder: Path) -> Path:
    """Save a checkpoint of that UNet with a text encoder of two layers and a small VAE of factor 8, unless it is there."""
    return _save(folder, layers=2, widths=(32,) * 4)


def save_whole_sd15(folder: Path) -> Path:
    """Save a checkpoint of which text encoder and VAE have Stable Diffusion 1.5's size, too (the vocabulary is the demo's)."""
    return _save(folder, layers=12, widths=(128, 256, 512, 512))


def _save(folder: Path, layers: int, widths: tuple[int, ...]) -> Path:
    if (folder / "model_index.json").is_file():
        return folder
    tokenizer = CLIPTokenizer.from_pretrained(str(DEMO / "tokenizer"))
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=layers,
        num_attention_heads=12,
        max_position_embeddings=77,
    )
    tokenizer.model_max_length = 77
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=2,
        sample_size=512,
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=sd15_unet(),
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def engines_of(checkpoint: str, folder: Path, opset: int, dtype: str = "fp32", *, masked: bool = True) -> Path:
    """Export a checkpoint, the UNet baked and, where asked for, masked: a bundle's folder without its evidence, unless it is there."""
    if (folder / "neurons.json").is_file():
        return folder
    opened = open_checkpoint(checkpoint)
    chosen = NeuronSet.empty(value_layers(opened.unet)).others(NEURONS, seed=0)
    settings = ExportSettings.model_validate({"dtype": dtype, "opset": opset})
    for component in opened.components():
        jobs = {component.name: (component, False)}
        if component.name == "unet":
            jobs = {UNET_FOLDERS["baked"]: (component, True)}
            if masked:
                jobs[UNET_FOLDERS["masked"]] = (gate(component, opened.unet, chosen.layers), False)
        for place, (graph, bake) in jobs.items():
            with silenced(opened.unet, chosen if bake else NeuronSet.empty(chosen.layers)):
                export_component(graph, folder / place, settings, {}, opened.config.factor)
            onnxruntime.compile_engine(folder, place, f"{place}/model.onnx", "cpu", None)
    opened.config.save(folder, [UNET_FOLDERS["baked"], *([UNET_FOLDERS["masked"]] if masked else [])])
    chosen.save(folder / "neurons.json")
    return folder
