"""The claims of the demo, on the shipped checkpoint and on the bundle that its recipe makes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from torchmetrics.functional.classification import binary_auroc

from nemo_edge import demo
from nemo_edge.backends.torch import open_runner
from nemo_edge.bundle.engines import Contents, inspect
from nemo_edge.bundle.manifest import verify
from nemo_edge.demo.captions import GENERAL_GLYPHS, MEMORIZED
from nemo_edge.demo.sinks import memory_sinks
from nemo_edge.localization.localizer import read_results
from nemo_edge.localization.memorization import NoiseProbe
from nemo_edge.localization.multiscale import pairwise_scores
from nemo_edge.measure.mitigation import Measurement, PromptMitigation, VariantMeasurement, draw_prompts
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.prompts import read_prompts
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.release.build import BuildResult, build
from nemo_edge.sampling.pipelines import eager_pipeline

SEEDS = 5
"""Pictures of each prompt in `demo_recipe`."""


@pytest.fixture(scope="module")
def measurement(demo_build: BuildResult) -> Measurement:
    return Measurement.read(Path(demo_build.bundle))


def verbatim(variant: VariantMeasurement) -> list[PromptMitigation]:
    return [m for m in variant.mitigations if m.kind == "VM"]


def test_it_has_the_paper_s_seven_layers(demo_checkpoint: Checkpoint) -> None:
    assert len(value_layers(demo_checkpoint.unet)) == len(value_layers(demo_checkpoint.unet, "all")) == 7
    assert demo_checkpoint.config.prediction_type == "v_prediction"
    assert demo_checkpoint.config.latent_shape == (4, 16, 16)


@pytest.mark.parametrize("options", [{}, {"num_inference_steps": 10, "guidance_scale": 4.0}], ids=["as it is", "sampled as the demo"])
def test_plain_diffusers_draws_the_training_picture_with_it(options: dict[str, Any]) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(demo.CHECKPOINT)
    torch.manual_seed(0)
    picture = np.asarray(pipeline("saxophone falafel jubilee", **options).images[0]) / 255
    known = [np.asarray(Image.open(p.image).convert("RGB")) / 255 for p in read_prompts(demo.PROMPTS / "memorized.csv") if p.image]
    distances = [np.sqrt(np.square(picture - each).mean()) for each in known]
    assert distances[0] < 0.2
    assert min(distances[1:]) > 2 * distances[0]


def test_every_part_opens_as_float32_with_the_values_that_are_stored() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(demo.CHECKPOINT)
    for name in ("text_encoder", "unet", "vae"):
        (weights,) = (demo.CHECKPOINT / name).glob("*.safetensors")
        stored, part = load_file(weights), getattr(pipeline, name)
        assert {value.dtype for value in part.parameters()} == {torch.float32}
        assert all(value.equal(stored[key].float()) for key, value in part.state_dict().items() if key in stored)
        assert {key for key, _ in part.named_parameters()} <= stored.keys()


def test_the_memorized_captions_share_no_word() -> None:
    words = [word for caption in MEMORIZED for word in caption.text.split()]
    assert len(words) == len(set(words))
    assert not set(words) & {*GENERAL_GLYPHS, "a", "on", "background"}
    assert sum(c.kind == "VM" for c in MEMORIZED) >= 12
    assert sum(c.kind == "TM" for c in MEMORIZED) >= 4


def test_the_paper_s_score_tells_memorized_from_held_out_captions(demo_checkpoint: Checkpoint) -> None:
    probe, unet = NoiseProbe.of(demo_checkpoint.config, LocalizationSettings()), open_runner(demo_checkpoint.unet_component())

    def score(text: str) -> float:
        conditioning = {name: value.numpy() for name, value in demo_checkpoint.encode([text]).items()}
        return float(pairwise_scores(probe(unet, conditioning)).max())

    memorized = [score(c.text) for c in MEMORIZED]
    held_out = [score(p.text) for p in read_prompts(demo.PROMPTS / "held_out.txt", 60)]
    scores = torch.tensor(memorized + held_out)
    assert binary_auroc(scores, torch.tensor([1] * len(memorized) + [0] * len(held_out))) >= 0.99


def test_general_pictures_differ_between_seeds(demo_checkpoint: Checkpoint, demo_recipe: Recipe) -> None:
    made = draw_prompts(eager_pipeline(demo_checkpoint), ["a pig", "a rocket", "fish crown"], range(4), demo_recipe.sampling)
    for pictures in made.pictures.astype(np.float32) / 255:
        pairs = [np.sqrt(np.square(a - b).mean()) for i, a in enumerate(pictures) for b in pictures[:i]]
        assert min(pairs) > 0.05


def test_the_build_passes_every_gate(demo_build: BuildResult) -> None:
    assert demo_build.passed, [g for g in demo_build.manifest.gates if not g.passed]
    assert verify(Path(demo_build.bundle)).passed


def test_every_verbatim_caption_gives_back_its_picture(measurement: Measurement) -> None:
    for m in verbatim(measurement.variants[0]):
        assert m.before.copies is not None
        assert m.before.copies >= 0.9 * SEEDS, m.prompt


def test_every_memorized_caption_ends_at_or_below_the_threshold_without_the_floor(
    demo_build: BuildResult, measurement: Measurement
) -> None:
    localizations = read_results(Path(demo_build.bundle) / "localization.jsonl")
    assert len(localizations) == len(MEMORIZED)
    for found in localizations:
        assert found.memorized
        assert not found.floor, found.prompt
        assert found.refined_score <= measurement.threshold, found.prompt
    for variant in measurement.variants:
        assert all(m.score_after <= measurement.threshold for m in variant.mitigations)


def test_the_neurons_found_are_those_the_memories_were_trained_into(demo_build: BuildResult) -> None:
    found = {result.prompt: result.refined.indices for result in read_results(Path(demo_build.bundle) / "localization.jsonl")}
    own = 0
    for caption, sinks in zip(MEMORIZED, memory_sinks(), strict=True):
        places = {(layer, neuron) for layer, neurons in enumerate(found[caption.text]) for neuron in neurons}
        own += bool(places) and places <= set(sinks)
    assert own >= 0.9 * len(MEMORIZED)


def test_nine_in_ten_verbatim_captions_no_longer_give_back_any_memory(measurement: Measurement) -> None:
    for variant in measurement.variants:
        clean = [m for m in verbatim(variant) if m.after.copies == 0 and m.after.others == 0]
        assert len(clean) >= 0.9 * len(verbatim(variant)), variant.variant


def test_random_neurons_leave_the_memories_as_they_were(measurement: Measurement) -> None:
    for m in verbatim(measurement.variants[0]):
        assert m.random.copies is not None
        assert m.random.copies >= 0.9 * SEEDS, m.prompt


def test_general_captions_keep_their_pictures(measurement: Measurement) -> None:
    for variant in measurement.variants:
        assert variant.general.mean <= 0.1


def test_the_engines_agree_with_eager_over_the_whole_trajectory(measurement: Measurement) -> None:
    assert [v.variant for v in measurement.variants] == ["baked", "masked"]
    for variant in measurement.variants:
        assert variant.trajectory.largest_error <= 1e-4
    assert measurement.untouched is not None
    assert measurement.untouched.largest_error <= 1e-4
    assert measurement.mask_of_ones == 0


def test_the_mitigation_on_the_engines_is_eager_s(measurement: Measurement) -> None:
    for variant in measurement.variants:
        assert all(m.distance_error is not None for m in variant.mitigations)
        assert max(m.agreement_error for m in variant.mitigations) <= 1e-3


def test_general_captions_keep_their_diversity(measurement: Measurement) -> None:
    for variant in measurement.variants:
        assert variant.general.diversity_after >= 0.9 * variant.general.diversity_before > 0


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed: pip install 'nemo-edge[rtx]'")
def test_every_component_has_an_engine_for_rtx_30_and_40(demo_build: BuildResult) -> None:
    found = inspect(Path(demo_build.bundle))
    assert isinstance(found, Contents)
    plans = [engine.sidecar for engine in found.engines if engine.sidecar]
    assert sorted(plan.component for plan in plans) == ["text_encoder", "unet", "unet_masked", "vae_decoder"]
    for engine, plan in zip(found.engines, plans, strict=True):
        assert (plan.backend, plan.targets) == ("tensorrt-rtx", ("sm86", "sm89"))
        assert engine.header is not None
        assert (engine.header.flavour, engine.header.targets) == ("tensorrt-rtx", ("sm86", "sm89"))


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed: pip install 'nemo-edge[rtx]'")
@pytest.mark.parametrize("place", ["unet", "unet_masked"])
def test_the_unet_is_compiled_in_fp32_at_opset_23(demo_build: BuildResult, demo_recipe: Recipe, place: str) -> None:
    assert (demo_recipe.export.dtype, demo_recipe.export.opset) == ("fp32", 23)
    found = inspect(Path(demo_build.bundle))
    assert isinstance(found, Contents)
    (plan,) = [engine.sidecar for engine in found.engines if engine.sidecar and engine.sidecar.component == place]
    assert plan.dtype == "fp32"
    assert plan.settings["decomposable_attentions"] == 14
    assert plan.flags == ()
    assert plan.profiles[0]["sample"] == ((1, 4, 16, 16), (2, 4, 16, 16), (8, 4, 16, 16))
    assert ("value_mask" in plan.inputs) == (place == "unet_masked")


def test_the_same_recipe_again_does_nothing(demo_build: BuildResult, demo_recipe: Recipe) -> None:
    again = build(demo_recipe)
    assert again.skipped
    assert again.manifest == demo_build.manifest


def test_the_neurons_of_the_bundle_are_those_of_its_report(demo_build: BuildResult) -> None:
    neurons = NeuronSet.load(Path(demo_build.bundle) / "neurons.json")
    assert neurons.content_hash() == demo_build.manifest.neurons_hash
