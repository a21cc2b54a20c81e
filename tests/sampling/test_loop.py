"""The denoising loop gives what diffusers' own pipelines give, whatever the batch, the mask and the size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from nemo_edge.backends.torch import open_runner
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import gate, silenced
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, check_size, denoise, generate
from nemo_edge.sampling.noise import initial_noise
from nemo_edge.sampling.schedulers import make_scheduler, scheduled
from nemo_edge.system.errors import InputError

PROMPTS = ["a pig on a red background", "saxophone falafel jubilee"]
SEEDS = [3, 4]
SETTINGS = SamplingSettings(steps=6)


def pipeline_of(checkpoint: Checkpoint, masked: bool = False) -> Pipeline:
    unet = checkpoint.unet_component()
    if masked:
        unet = gate(unet, checkpoint.unet, value_layers(checkpoint.unet))
    texts = tuple(open_runner(checkpoint.text_component(i)) for i in range(len(checkpoint.text_encoders)))
    return Pipeline(checkpoint.config, texts, open_runner(unet), open_runner(checkpoint.vae_component()))


def last(pipeline: Pipeline, settings: SamplingSettings, mask: np.ndarray | None = None) -> np.ndarray:
    *_, step = denoise(pipeline, PROMPTS, SEEDS, settings, mask)
    return step.latents_BCHW


def some(checkpoint: Checkpoint) -> NeuronSet:
    layers = value_layers(checkpoint.unet)
    return NeuronSet.from_lists(layers, [range(0, layer.width, 2) for layer in layers])


def in_diffusers(checkpoint: Checkpoint, settings: SamplingSettings, output: str) -> np.ndarray:
    """What diffusers' own pipeline makes of the same prompts, latents and scheduler."""
    family: dict[str, tuple[Any, dict[str, object]]] = {
        "sd": (StableDiffusionPipeline, {"safety_checker": None}),
        "sdxl": (StableDiffusionXLPipeline, {"add_watermarker": False}),
    }
    cls, options = family[checkpoint.config.family]
    pipeline = cls.from_pretrained(checkpoint.source, **options)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(checkpoint.config, settings)
    factor = checkpoint.config.factor
    height, width = settings.height or 16 * factor, settings.width or 16 * factor
    images: np.ndarray | torch.Tensor = pipeline(
        PROMPTS,
        negative_prompt=[settings.negative_prompt] * len(PROMPTS) if settings.negative_prompt else None,
        height=height,
        width=width,
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        latents=torch.from_numpy(initial_noise(SEEDS, (4, height // factor, width // factor))),
        output_type=output,
    ).images
    return images.numpy() if isinstance(images, torch.Tensor) else images


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("scheduler", ["ddim", "euler", "dpmsolver++"])
def test_sd_makes_diffusers_latents(toy: Checkpoint, scheduler: str) -> None:
    settings = SamplingSettings(steps=6, scheduler=scheduler)  # type: ignore[arg-type]
    assert_close(last(pipeline_of(toy), settings), in_diffusers(toy, settings, "latent"))


@pytest.mark.parametrize("negative", ["", "a crab"])
def test_xl_makes_diffusers_latents(toy_sdxl: Checkpoint, negative: str) -> None:
    settings = SamplingSettings(steps=6, scheduler="euler", negative_prompt=negative)
    assert_close(last(pipeline_of(toy_sdxl), settings), in_diffusers(toy_sdxl, settings, "latent"))


def test_a_negative_prompt_is_diffusers_own(toy: Checkpoint) -> None:
    settings = SamplingSettings(steps=6, negative_prompt="a crab")
    got = last(pipeline_of(toy), settings)
    assert_close(got, in_diffusers(toy, settings, "latent"))
    assert np.abs(got - last(pipeline_of(toy), SETTINGS)).max() > 1e-3


def test_pictures_are_diffusers_own(toy: Checkpoint) -> None:
    got = generate(pipeline_of(toy), PROMPTS, SEEDS, SETTINGS)
    assert got.dtype == np.uint8
    assert got.shape == (2, 32, 32, 3)
    assert np.abs(got - 255 * in_diffusers(toy, SETTINGS, "np")).max() < 0.51


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_another_size_is_diffusers_own(toy: Checkpoint, toy_sdxl: Checkpoint, family: str) -> None:
    checkpoint = toy if family == "sd" else toy_sdxl
    settings = SamplingSettings(steps=4, height=48, width=16)
    got = last(pipeline_of(checkpoint), settings)
    assert got.shape == (2, 4, 24, 8)
    assert_close(got, in_diffusers(checkpoint, settings, "latent"))
    assert generate(pipeline_of(checkpoint), PROMPTS, SEEDS, settings).shape == (2, 48, 16, 3)


@pytest.mark.parametrize("guidance", [0, 0.5, 1])
def test_guidance_up_to_1_runs_the_conditional_rows_only(toy: Checkpoint, guidance: float) -> None:
    guided = next(denoise(pipeline_of(toy), PROMPTS, SEEDS, SETTINGS))
    plain = next(denoise(pipeline_of(toy), PROMPTS, SEEDS, SamplingSettings(steps=6, guidance=guidance)))
    assert len(guided.output_RCHW) == 4
    assert len(plain.output_RCHW) == 2
    assert_close(plain.output_RCHW, guided.output_RCHW[2:])


def test_it_yields_one_step_a_time(toy: Checkpoint) -> None:
    steps = list(denoise(pipeline_of(toy), PROMPTS, SEEDS, SETTINGS))
    scheduler = scheduled(toy.config, SETTINGS)
    assert [step.index for step in steps] == list(range(6))
    assert [step.time for step in steps] == [float(t) for t in scheduler.timesteps]


def test_a_seed_gives_its_noise_whatever_the_batch() -> None:
    shape = (4, 16, 16)
    together = initial_noise([7, 8, 9], shape)
    assert together.dtype == np.float32
    assert np.array_equal(together, np.concatenate([initial_noise([seed], shape) for seed in (7, 8, 9)]))
    assert np.array_equal(together[0], torch.randn(shape, generator=torch.Generator().manual_seed(7)).numpy())
    assert not np.array_equal(together[0], together[1])


def test_a_picture_is_the_same_whatever_the_batch(toy: Checkpoint) -> None:
    *_, alone = denoise(pipeline_of(toy), PROMPTS[1:], SEEDS[1:], SETTINGS)
    assert_close(alone.latents_BCHW, last(pipeline_of(toy), SETTINGS)[1:])


def test_a_masked_unet_without_a_mask_is_the_untouched_one(toy: Checkpoint) -> None:
    assert pipeline_of(toy, masked=True).masked
    assert not pipeline_of(toy).masked
    assert np.array_equal(last(pipeline_of(toy, masked=True), SETTINGS), last(pipeline_of(toy), SETTINGS))


def test_a_mask_is_the_silenced_unet(toy: Checkpoint) -> None:
    neurons = some(toy)
    with silenced(toy.unet, neurons):
        expected = last(pipeline_of(toy), SETTINGS)
    assert np.array_equal(last(pipeline_of(toy, masked=True), SETTINGS, neurons.mask()), expected)


def test_a_mask_a_picture_acts_on_its_picture_only(toy: Checkpoint) -> None:
    neurons = some(toy)
    mask_BN = np.stack([np.ones(neurons.total, np.float32), neurons.mask()])
    got, untouched = last(pipeline_of(toy, masked=True), SETTINGS, mask_BN), last(pipeline_of(toy), SETTINGS)
    with silenced(toy.unet, neurons):
        silent = last(pipeline_of(toy), SETTINGS)
    assert not np.array_equal(silent[1], untouched[1])
    assert np.array_equal(got, np.stack([untouched[0], silent[1]]))


def test_a_mask_for_a_baked_unet_is_refused(toy: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"this UNet is baked and takes no mask: use the masked variant"):
        last(pipeline_of(toy), SETTINGS, some(toy).mask())


@pytest.mark.parametrize("shape", [(79,), (81,), (3, 80), (1, 80), (2, 79), ()])
def test_a_mask_of_another_shape_is_refused(toy: Checkpoint, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \[80\] or \[2, 80\] \(pictures × value neurons\)"):
        last(pipeline_of(toy, masked=True), SETTINGS, np.ones(shape, np.float32))


def test_a_mask_that_holds_other_than_factors_is_refused(toy: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"factors from 0 to 1"):
        last(pipeline_of(toy, masked=True), SETTINGS, np.full(80, np.nan, np.float32))


@pytest.mark.parametrize(("height", "near"), [(8, "16 or 32"), (72, "64 or 80")])
def test_a_size_that_does_not_halve_evenly_is_refused(toy: Checkpoint, height: int, near: str) -> None:
    settings = SETTINGS.model_copy(update={"height": height})
    with pytest.raises(InputError, match=rf"height {height} is not a multiple of 16 pixels.*take {near}, or build with export\.height"):
        last(pipeline_of(toy), settings)


def test_a_size_of_the_model_s_own_that_does_not_halve_evenly_is_refused_too(toy: Checkpoint) -> None:
    config = replace(toy.config, unet={**toy.config.unet, "sample_size": 7})
    with pytest.raises(InputError, match=r"height 14 is not a multiple of 16 pixels.*take 16 or 32"):
        check_size(config, SETTINGS, ["height"])
    check_size(config, SETTINGS, [])  # pinned


def test_eager_draws_any_size_as_the_graph_does_that_pins_it(toy: Checkpoint) -> None:
    settings = SETTINGS.model_copy(update={"height": 24})
    assert last(replace(pipeline_of(toy), eager=True), settings).shape[2:] == (12, 16)


def test_more_steps_than_the_noise_schedule_has_are_refused(toy: Checkpoint) -> None:
    with pytest.raises(InputError, match="steps 1000 go beyond the 1000 times of this model's noise schedule: take 999 or fewer"):
        next(denoise(pipeline_of(toy), PROMPTS, SEEDS, SamplingSettings(steps=1000)))
    assert next(denoise(pipeline_of(toy), PROMPTS, SEEDS, SamplingSettings(steps=999))).time == 999
