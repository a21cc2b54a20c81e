"""`clip_skip`: prompts are read without the last layers of the text encoders, on every path as by diffusers' own call.

diffusers reads no or the negative prompt with all layers, and so does everything here.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import write_tiny
from diffusers import DiffusionPipeline
from once import once
from PIL import Image
from transformers import CLIPTokenizer

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.dropin.load import load_pipeline
from nemo_edge.export._component import export_component
from nemo_edge.localization.calibration import calibrate, check_own
from nemo_edge.measure.bench import runnables
from nemo_edge.measure.comparison import Question, compare
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, open_parts
from nemo_edge.model.component import SKIPPED
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import bake_
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import (
    CheckpointSettings,
    ExportSettings,
    GateSettings,
    LatencySettings,
    LocalizationSettings,
    SamplingSettings,
)
from nemo_edge.release.build import build
from nemo_edge.release.review import judge_again
from nemo_edge.sampling.generate import Request, draw
from nemo_edge.sampling.loop import generate
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.serving.local import open_painter
from nemo_edge.serving.repository import ship
from nemo_edge.system.errors import InputError

PROMPTS = ["a red pig", "a dog"]
SETTINGS = SamplingSettings(steps=2, guidance=5.0, negative_prompt="a crab")
KINDS = [("sd", 1), ("sd", 2), ("sdxl", 1)]
"""Families, and what can be skipped of the two layers that the toys' text encoders have."""


def diffusers_own(folder: str | Path) -> Any:
    """diffusers' pipeline, whose SD 1.x looks for its text encoder's last norm where transformers before 5 has it."""
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    if not hasattr(pipeline.text_encoder, "text_model"):
        object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    return pipeline


@pytest.fixture(params=KINDS, ids=lambda kind: f"{kind[0]}-{kind[1]}")
def skipping(request: pytest.FixtureRequest, toy: Checkpoint, toy_sdxl: Checkpoint) -> Checkpoint:
    family, clip_skip = request.param
    return open_checkpoint((toy if family == "sd" else toy_sdxl).source, clip_skip=clip_skip)


def test_embeddings_are_diffusers_own(skipping: Checkpoint, toy: Checkpoint, toy_sdxl: Checkpoint) -> None:
    options: dict[str, Any] = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    options |= {"negative_prompt": ["a crab"] * 2, "clip_skip": skipping.config.clip_skip}
    found = diffusers_own(skipping.source).encode_prompt(PROMPTS, **options)
    got, negative = skipping.encode(PROMPTS), skipping.encode(["a crab"] * 2, unconditional=True)
    assert torch.equal(got["encoder_hidden_states"], found[0])
    assert torch.equal(negative["encoder_hidden_states"], found[1])
    if skipping.config.family == "sdxl":
        assert torch.equal(got["text_embeds"], found[2])
    usual = (toy if skipping.config.family == "sd" else toy_sdxl).encode(PROMPTS)["encoder_hidden_states"]
    assert not torch.equal(got["encoder_hidden_states"], usual)


def test_pictures_are_diffusers_own(skipping: Checkpoint) -> None:
    call: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 5.0, "negative_prompt": ["a crab"] * 2, "output_type": "np"}
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    images = diffusers_own(skipping.source)(PROMPTS, generator=generators, clip_skip=skipping.config.clip_skip, **call).images
    assert np.array_equal(generate(eager_pipeline(skipping), PROMPTS, [3, 4], SETTINGS), np.rint(images * 255).astype(np.uint8))


def test_the_graph_gives_the_state(toy: Checkpoint, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(toy.source, clip_skip=1)
    export_component(checkpoint.text_component(0), tmp_path / "text", ExportSettings(), {}, checkpoint.config.factor)
    with OnnxRuntimeRunner(tmp_path / "text" / "model.onnx") as runner:
        got = runner({"input_ids": checkpoint.token_ids(PROMPTS)[0]})
    for name, read in ((SKIPPED, checkpoint), ("last_hidden_state", toy)):
        expected = read.encode(PROMPTS)["encoder_hidden_states"].numpy()
        assert np.abs(got[name] - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize(("family", "clip_skip", "most"), [("sd", 3, 2), ("sd", -1, 2), ("sdxl", 2, 1)])
def test_more_layers_than_there_are_are_refused_before_weights_are_read(
    toy: Checkpoint, toy_sdxl: Checkpoint, monkeypatch: pytest.MonkeyPatch, family: str, clip_skip: int, most: int
) -> None:
    monkeypatch.setattr("nemo_edge.model.checkpoint.pipeline_from_folder", None)
    why = f"^clip_skip {clip_skip} does not fit the checkpoint, whose text encoder has 2 layers: take 0 to {most}$"
    with pytest.raises(InputError, match=why):
        open_checkpoint((toy if family == "sd" else toy_sdxl).source, clip_skip=clip_skip)


def test_it_is_part_of_what_the_checkpoint_is(toy: Checkpoint, tmp_path: Path) -> None:
    skipping = open_parts(CheckpointSettings(path=toy.source, clip_skip=1))
    assert len({toy.content_hash(), skipping.content_hash(), open_checkpoint(toy.source, clip_skip=2).content_hash()}) == 3
    calibrate(toy, PROMPTS, LocalizationSettings(samples=2), with_threshold=False).save(tmp_path / "s.safetensors")
    with pytest.raises(InputError, match="were measured on another checkpoint"):
        check_own(tmp_path / "s.safetensors", skipping)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    """The folder of the tiny model, and of its masked bundle built with `clip_skip = 1`, which may be shipped."""

    def make(folder: Path) -> None:
        recipe = write_tiny(folder, tokenizer)
        text = recipe.read_text().replace('path = "./model"', 'path = "./model"\nclip_skip = 1')
        recipe.write_text(f'{text}[export]\nvariants = ["masked"]\n')
        build(load_recipe(recipe))
        judge_again(folder / "out", GateSettings(memorization_score=False, schedule_floor=False), write=True)

    return once(tmp_path_factory, "skipping", make)


def levels(a: Any, b: Any) -> int:
    return int(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max())


def test_a_bundle_draws_as_diffusers_does_on_every_path(folder: Path, tmp_path: Path) -> None:
    eager, bundle = diffusers_own(folder / "model"), folder / "out"
    call: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 7.0}

    def drawn(pipeline: Any, **options: Any) -> Any:
        return pipeline("a red pig", generator=torch.Generator().manual_seed(3), **call, **options).images[0]

    bake_(eager.unet, NeuronSet.load(bundle / "neurons.json"))
    expected = drawn(eager, clip_skip=1)
    assert levels(expected, drawn(eager)) > 1
    (path,) = draw(bundle, Request("a red pig", seed=3, overrides={"steps": 3, "guidance": 7.0}), tmp_path / "p.png")
    assert levels(Image.open(path), expected) <= 1
    with load_pipeline(bundle, policy="always") as pipeline:
        assert levels(drawn(pipeline), expected) <= 1
        assert levels(drawn(pipeline, clip_skip=1), expected) <= 1
    ship(bundle, tmp_path / "repository")
    with ExitStack() as stack:
        asked = {"prompt": [b"a red pig"], "seed": [3], "steps": [3], "guidance": [7.0], "policy": [b"always"]}
        types = {"seed": np.int64, "steps": np.int32, "guidance": np.float32}
        request = {name: np.array(value, types.get(name, object)) for name, value in asked.items()}
        assert levels(open_painter(tmp_path / "repository", stack).paint(request).pictures[0], expected) <= 1


def test_its_engines_agree_with_eager_and_it_says_so(folder: Path) -> None:
    manifest = open_bundle(folder / "out")
    assert manifest.recipe["checkpoint"]["clip_skip"] == 1
    assert "clip_skip 1" in manifest.checkpoint
    assert json.loads((folder / "out" / "text_encoder" / "config.json").read_text())["clip_skip"] == 1
    assert manifest.passed
    assert manifest.gates
    found = compare(str(folder / "model"), str(folder / "out"), Question(prompts=("a red pig",), steps=2))
    assert found.passed
    recipe = load_recipe(folder / "recipe.toml")
    assert runnables(folder / "out", recipe, LatencySettings(), recipe.checkpoint.path)[0].clip_skip == 1


def test_calls_for_other_states_are_refused(folder: Path) -> None:
    with load_pipeline(folder / "out", policy="triggered") as pipeline:
        pipeline("a red pig", num_inference_steps=2, clip_skip=1)
        given = pipeline.encode_prompt(PROMPTS, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        same = pipeline.encode_prompt(PROMPTS, "cpu", 1, False, clip_skip=1)
        assert torch.equal(given[0], same[0])
        with pytest.raises(InputError, match=r"gives the hidden states of clip_skip = 1 and of none: leave clip_skip out, or use"):
            pipeline("a red pig", num_inference_steps=2, clip_skip=2)
        with pytest.raises(InputError, match="clip_skip gives states that policy triggered does not know"):
            pipeline("a red pig", num_inference_steps=2, clip_skip=None)
