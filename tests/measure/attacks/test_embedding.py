"""An embedding is optimised towards a picture, from the same noise the same one, and drawn as diffusers draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from nemo_edge.backends.torch import open_runner
from nemo_edge.measure.attacks.base import Found
from nemo_edge.measure.attacks.embedding import BATCH, EmbeddingAttack, draw_found, from_noise
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import gate, silenced
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.sampling.schedulers import make_scheduler

SAMPLING = SamplingSettings(steps=2, guidance=3.0)
SEEDS = [3, 4]


def attack_of(checkpoint: Checkpoint, steps: int, **changes: Any) -> EmbeddingAttack:
    return EmbeddingAttack(Objective.of(checkpoint), steps, 0, **changes)


def latents_of(checkpoint: Checkpoint) -> torch.Tensor:
    return torch.randn(checkpoint.config.latent_shape, generator=torch.Generator().manual_seed(1))


def start_of(checkpoint: Checkpoint, prompt: str = "a red pig") -> dict[str, np.ndarray]:
    return eager_pipeline(checkpoint).encode([prompt], checkpoint.config.pixel_size)


def loss_of(checkpoint: Checkpoint, told: Mapping[str, np.ndarray]) -> float:
    """On noise and times that no attack saw."""
    objective, generator = Objective.of(checkpoint), torch.Generator().manual_seed(99)
    noised = objective.noised(latents_of(checkpoint), 64, generator)
    with torch.no_grad():
        return float(objective.loss({name: torch.from_numpy(value) for name, value in told.items()}, noised))


@pytest.mark.parametrize("name", ["toy", "toy_sdxl"])
def test_the_loss_falls_on_noise_that_was_not_seen(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    start = start_of(checkpoint)
    kept = {key: value.copy() for key, value in start.items()}
    *_, last = attack_of(checkpoint, 12)(latents_of(checkpoint), start)
    assert loss_of(checkpoint, last.told) < loss_of(checkpoint, start)
    for key, value in kept.items():
        assert np.array_equal(start[key], value), "the start was changed"
        assert np.array_equal(last.told[key], value) == (key == "time_ids"), key


def test_the_first_step_is_adam_s(toy: Checkpoint) -> None:
    """In its first step Adam goes by its rate against the sign of the gradient, whatever the gradient's size."""
    start, objective = start_of(toy), Objective.of(toy)
    (found,) = attack_of(toy, 1)(latents_of(toy), start)
    told = {"encoder_hidden_states": torch.from_numpy(start["encoder_hidden_states"]).requires_grad_()}
    objective.loss(told, objective.noised(latents_of(toy), BATCH, torch.Generator().manual_seed(0))).backward()
    gradient = told["encoder_hidden_states"].grad
    assert gradient is not None
    sure = (gradient.abs() > 1e-5).numpy()
    assert sure.any()
    moved = found.told["encoder_hidden_states"] - start["encoder_hidden_states"]
    np.testing.assert_allclose(moved[sure], -0.1 * np.sign(gradient.numpy())[sure], atol=1e-3)


def test_noise_and_times_are_fresh_in_each_step_and_the_same_for_a_seed(toy: Checkpoint) -> None:
    seen: list[list[int]] = []

    class Watched(Objective):
        def noised(self, *arguments: Any) -> Any:
            found = super().noised(*arguments)
            seen.append(found.time_B.tolist())
            return found

    plain = Objective.of(toy)
    watched = Watched(plain.unet, plain.names, plain.alpha_bar_T, plain.prediction_type)
    runs: list[list[Found]] = [list(EmbeddingAttack(watched, 3, seed)(latents_of(toy), start_of(toy))) for seed in (0, 0, 1)]
    assert len({tuple(times) for times in seen[:3]}) == 3
    assert seen[:3] == seen[3:6] != seen[6:]
    a, b, c = (run[-1].told["encoder_hidden_states"] for run in runs)
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_marks_are_of_one_run(toy: Checkpoint) -> None:
    """What is found after ten steps is what an attack of ten steps finds, and is not changed by the steps after it."""
    first, last = list(attack_of(toy, 12)(latents_of(toy), start_of(toy)))
    (short,) = attack_of(toy, 10)(latents_of(toy), start_of(toy))
    assert (first.steps, last.steps, short.steps) == (10, 12, 10)
    assert np.array_equal(first.told["encoder_hidden_states"], short.told["encoder_hidden_states"])
    assert not np.array_equal(first.told["encoder_hidden_states"], last.told["encoder_hidden_states"])


def test_a_start_from_noise_is_standard_normal_and_leaves_sizes_alone(toy_sdxl: Checkpoint) -> None:
    told = start_of(toy_sdxl)
    noise = from_noise(told, 0)
    assert np.array_equal(noise["time_ids"], told["time_ids"])
    assert noise["encoder_hidden_states"].std() == pytest.approx(1, abs=0.1)
    assert noise["text_embeds"].shape == told["text_embeds"].shape
    assert not np.array_equal(noise["encoder_hidden_states"], from_noise(told, 1)["encoder_hidden_states"])


@pytest.mark.parametrize("guidance", [3.0, 1.0])
@pytest.mark.parametrize("name", ["toy", "toy_sdxl"])
def test_the_found_embedding_is_drawn_as_diffusers_draws_it(name: str, guidance: float, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    settings = replace_guidance(guidance)
    told = from_noise(start_of(checkpoint), 5)
    drawn = draw_found(eager_pipeline(checkpoint), told, SEEDS, settings)
    assert np.abs(drawn.astype(int) - in_diffusers(checkpoint, told, settings)).max() <= 1
    other = draw_found(eager_pipeline(checkpoint), start_of(checkpoint), SEEDS, settings)
    assert np.abs(drawn.astype(int) - other).max() > 1


def replace_guidance(guidance: float) -> SamplingSettings:
    return SAMPLING.model_copy(update={"guidance": guidance})


def in_diffusers(checkpoint: Checkpoint, told: Mapping[str, np.ndarray], settings: SamplingSettings) -> np.ndarray:
    """Each seed alone, as the pipeline draws `prompt_embeds` that it is given."""
    cls: Any = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[checkpoint.config.family]
    options: dict[str, Any] = {"safety_checker": None} if checkpoint.config.family == "sd" else {"add_watermarker": False}
    pipeline = cls.from_pretrained(checkpoint.source, **options)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = make_scheduler(checkpoint.config, settings)
    height, width = checkpoint.config.pixel_size
    embeds = {"prompt_embeds": torch.from_numpy(told["encoder_hidden_states"])}
    none = eager_pipeline(checkpoint).encode([""], checkpoint.config.pixel_size)
    zeros = bool(checkpoint.config.index.get("force_zeros_for_empty_prompt"))
    if settings.guidance > 1:
        negative = torch.from_numpy(none["encoder_hidden_states"])
        embeds["negative_prompt_embeds"] = torch.zeros_like(negative) if zeros else negative
    if checkpoint.config.family == "sdxl":
        embeds["pooled_prompt_embeds"] = torch.from_numpy(told["text_embeds"])
        if settings.guidance > 1:
            pooled = torch.from_numpy(none["text_embeds"])
            embeds["negative_pooled_prompt_embeds"] = torch.zeros_like(pooled) if zeros else pooled
    made = []
    for seed in SEEDS:
        out = pipeline(
            **embeds,
            height=height,
            width=width,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
        )
        made.append(np.rint(out.images[0] * 255).astype(int))
    return np.stack(made)


def test_a_masked_engine_draws_it_as_eager_does_with_the_neurons_silenced(toy: Checkpoint) -> None:
    layers = value_layers(toy.unet)
    chosen = NeuronSet.from_lists(layers, [range(0, layer.width, 2) for layer in layers])
    eager, told = eager_pipeline(toy), from_noise(start_of(toy), 5)
    with silenced(toy.unet, chosen):
        expected = draw_found(eager, told, SEEDS, SAMPLING)
    masked = replace(eager, unet=open_runner(gate(toy.unet_component(), toy.unet, layers)))
    assert np.array_equal(draw_found(masked, told, SEEDS, SAMPLING, chosen.mask()), expected)
    assert not np.array_equal(draw_found(masked, told, SEEDS, SAMPLING), expected)
