"""The loss is the one that the model was trained by, whatever it predicts, and gradients row by row are those of the batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def told_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: value.clone().requires_grad_() for name, value in checkpoint.encode(["a red pig"]).items()}


@pytest.fixture
def latents(toy: Checkpoint) -> torch.Tensor:
    return torch.randn(toy.config.latent_shape, generator=generator(0))


def test_noise_is_put_on_as_the_scheduler_of_the_training_does(toy: Checkpoint, latents: torch.Tensor) -> None:
    noised = Objective.of(toy).noised(latents, 6, generator())
    scheduler = DDPMScheduler.from_config(dict(toy.config.scheduler))
    expected = scheduler.add_noise(latents.expand(6, -1, -1, -1), noised.target_BCHW, noised.time_B)
    torch.testing.assert_close(noised.x_BCHW, expected)
    assert len(set(noised.time_B.tolist())) > 1


def test_the_times_are_all_of_the_schedule(toy: Checkpoint) -> None:
    time_B = Objective.of(toy).noised(torch.zeros(1, 1, 1), 20_000, generator()).time_B
    assert (int(time_B.min()), int(time_B.max())) == (0, 999)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_target_undoes_the_noise(toy: Checkpoint, latents: torch.Tensor, kind: str) -> None:
    """From x and the target the scheduler, told what is predicted, gets the picture itself back."""
    noised = replace(Objective.of(toy), prediction_type=kind).noised(latents, 4, generator())
    scheduler = DDPMScheduler.from_config(dict(toy.config.scheduler), prediction_type=kind, clip_sample=False)
    for x_CHW, time, target_CHW in zip(noised.x_BCHW, noised.time_B, noised.target_BCHW, strict=True):
        found = scheduler.step(target_CHW, int(time), x_CHW, generator=generator()).pred_original_sample
        torch.testing.assert_close(found, latents, atol=2e-3, rtol=1e-3)


def test_the_target_of_v_prediction_is_the_velocity_of_diffusers(toy: Checkpoint, latents: torch.Tensor) -> None:
    plain = Objective.of(toy)
    noise_BCHW = plain.noised(latents, 4, generator()).target_BCHW
    noised = replace(plain, prediction_type="v_prediction").noised(latents, 4, generator())
    scheduler = DDPMScheduler.from_config(dict(toy.config.scheduler))
    torch.testing.assert_close(noised.target_BCHW, scheduler.get_velocity(latents.expand(4, -1, -1, -1), noise_BCHW, noised.time_B))


@pytest.mark.parametrize("name", ["toy", "toy_sdxl"])
def test_gradients_row_by_row_are_those_of_the_batch(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    objective, latents = Objective.of(checkpoint), torch.randn(checkpoint.config.latent_shape, generator=generator(0))
    noised, found = objective.noised(latents, 5, generator()), []
    for at_once in (5, 2, 1):  # the parts of 2 are not all of one size
        told = told_of(checkpoint)
        loss = objective.accumulate_(told, noised, at_once)
        assert loss == pytest.approx(float(objective.loss(told, noised).detach()), rel=1e-5)
        found.append({key: value.grad for key, value in told.items() if key != "time_ids"})
    for key, whole in found[0].items():
        assert whole is not None
        assert float(whole.abs().max()) > 0, key
        for other in found[1:]:
            torch.testing.assert_close(other[key], whole, atol=1e-7, rtol=1e-3)


def test_what_is_silenced_stays_silent(toy: Checkpoint, latents: torch.Tensor) -> None:
    from nemo_edge.model.checkpoint import value_layers

    layers = value_layers(toy.unet)
    chosen = NeuronSet.from_lists(layers, [range(layer.width) for layer in layers])
    objective, told = Objective.of(toy), told_of(toy)
    noised = objective.noised(latents, 2, generator())
    before: Any = objective.loss(told, noised)
    with silenced(toy.unet, chosen):
        inside: Any = objective.loss(told, noised)
    assert float(inside) != float(before)
    assert float(objective.loss(told, noised)) == float(before)
