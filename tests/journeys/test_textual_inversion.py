"""A textual inversion of several vectors: its one token stands for all of them wherever a prompt is read, as in diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import save_toy_sd, save_toy_sdxl
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from transformers import CLIPTokenizer

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.export._component import export_component
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import ExportSettings, SamplingSettings
from nemo_edge.sampling.loop import generate
from nemo_edge.sampling.pipelines import eager_pipeline

VECTORS = {"tokenizer": 3, "tokenizer_2": 2}
"""Of `<cat>`, other ones for each tokenizer."""
PROMPTS = ["a <cat> on a dog, <CAT>", "<one> bus beside <cat>", "<cat> <cat>_1", "a red pig", "<cat>" * 9]
SETTINGS = SamplingSettings(steps=2, guidance=5.0, negative_prompt="an ugly <cat>")


def save_inverted(place: Path, tokenizer: CLIPTokenizer, family: str) -> Path:
    """A checkpoint saved after `load_textual_inversion`, of `<cat>` and of `<one>`, which is a single vector."""
    cls, save = {"sd": (StableDiffusionPipeline, save_toy_sd), "sdxl": (StableDiffusionXLPipeline, save_toy_sdxl)}[family]
    pipeline: Any = cls.from_pretrained(save(place / "plain", tokenizer))
    torch.manual_seed(9)
    for name in VECTORS.keys() & pipeline.components.keys():
        parts = {"tokenizer": getattr(pipeline, name), "text_encoder": getattr(pipeline, name.replace("tokenizer", "text_encoder"))}
        pipeline.load_textual_inversion({"<cat>": torch.randn(VECTORS[name], 16)}, **parts)
        pipeline.load_textual_inversion({"<one>": torch.randn(1, 16)}, **parts)
    pipeline.save_pretrained(place / "own")
    return place / "own"


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    return save_inverted(tmp_path_factory.mktemp("inversion"), tokenizer, request.param)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return open_checkpoint(str(folder))


@pytest.fixture(scope="module")
def diffusers_own(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def ids_in_diffusers(pipeline: Any) -> list[np.ndarray]:
    tokenizers = [getattr(pipeline, name) for name in VECTORS if hasattr(pipeline, name)]
    options: dict[str, Any] = {"padding": "max_length", "max_length": 16, "truncation": True, "return_tensors": "np"}
    return [t(pipeline.maybe_convert_prompt(PROMPTS, t), **options).input_ids for t in tokenizers]


def test_ids_and_embeddings_are_diffusers_own(checkpoint: Checkpoint, diffusers_own: Any) -> None:
    expected = ids_in_diffusers(diffusers_own)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(checkpoint.token_ids(PROMPTS), expected, strict=True))
    assert len({ids[0].tobytes() for ids in expected}) == len(expected)  # each tokenizer for itself
    found = diffusers_own.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    got = checkpoint.encode(PROMPTS)
    assert torch.equal(got["encoder_hidden_states"], found[0])
    assert "text_embeds" not in got or torch.equal(got["text_embeds"], found[2])


def test_a_bundle_has_the_tokens(checkpoint: Checkpoint, diffusers_own: Any, tmp_path: Path) -> None:
    checkpoint.config.save(tmp_path, ["unet"])
    again = Configuration.load(tmp_path)
    expected = ids_in_diffusers(diffusers_own)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(again.token_ids(PROMPTS), expected, strict=True))
    known = [config["vocab_size"] for config in again.text_encoders]
    assert known == [len(tokenizer) for tokenizer in again.tokenizers] == [716, 715][: len(known)]


def test_its_graph_has_the_vectors(checkpoint: Checkpoint, tmp_path: Path) -> None:
    component = checkpoint.text_component(len(checkpoint.text_encoders) - 1)
    export_component(component, tmp_path / "text", ExportSettings(), {}, checkpoint.config.factor)
    ids = checkpoint.token_ids(PROMPTS)[-1]
    with OnnxRuntimeRunner(tmp_path / "text" / "model.onnx") as runner:
        got = runner({"input_ids": ids})["last_hidden_state"]
    with torch.no_grad():
        expected = checkpoint.text_encoders[-1](torch.from_numpy(ids)).last_hidden_state.numpy()
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


def test_pictures_are_diffusers_own(checkpoint: Checkpoint, diffusers_own: Any) -> None:
    prompts = ["a <cat>", "a bus"]
    call: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "negative_prompt": [SETTINGS.negative_prompt] * 2}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    expected = np.rint(diffusers_own(prompts, generator=generators, output_type="np", **call).images * 255).astype(np.uint8)
    assert np.array_equal(generate(eager_pipeline(checkpoint), prompts, [3, 4], SETTINGS), expected)


def test_what_is_left_out_is_counted_in_all_its_tokens(checkpoint: Checkpoint) -> None:
    """16 places, of which 14 are for words: `<cat>` five times fits as one token each, and not as three."""
    prompt = "<cat> " * 5
    assert (prompt in checkpoint.config.left_out([prompt])) is (len(checkpoint.text_encoders) == 1)  # two of each fit, of XL's second
    assert checkpoint.config.left_out(["<cat>"]) == {}
