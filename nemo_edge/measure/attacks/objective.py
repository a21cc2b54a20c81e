"""How well a UNet, told something in place of a prompt, takes the noise out of one known picture: the loss it was trained by.

Knows latents and noise schedules, nothing of prompts or pictures. Shapes: B rows, C channels, H and W of the latents, T times.
"""

from __future__ import annotations

__all__ = ["Noised", "Objective"]

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.configuration import Configuration


@dataclass(frozen=True)
class Noised:
    """Rows of one picture under noise: what the UNet sees, when, and what it should say."""

    x_BCHW: Tensor
    time_B: Tensor
    target_BCHW: Tensor

    def split(self, rows: int) -> list[Noised]:
        """The rows in parts of so many."""
        parts = zip(*(torch.split(getattr(self, field.name), rows) for field in fields(self)), strict=True)
        return [Noised(*part) for part in parts]


@dataclass(frozen=True)
class Objective:
    """The diffusion loss of a UNet, which takes gradients back to what it is told."""

    unet: nn.Module
    """Its graph: `sample`, `timestep`, then `names` → a tuple of the prediction."""
    names: tuple[str, ...]
    """What it is told, in order: `encoder_hidden_states`, and what else its family takes."""
    alpha_bar_T: Tensor
    """ᾱ, the share of the picture in each time's variance."""
    prediction_type: str

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Objective:
        """The loss of a checkpoint's UNet, as it is now: what is silenced in it stays silent."""
        component = checkpoint.unet_component()
        names = tuple(port.name for port in component.inputs[2:])
        alpha_bar_T = _alpha_bar(checkpoint.config).to(checkpoint.device)
        return cls(component.module, names, alpha_bar_T, checkpoint.config.prediction_type)

    def noised(self, latents_CHW: Tensor, rows: int, generator: torch.Generator) -> Noised:
        """Put fresh noise on a picture, each row at a time of its own, t ~ U(1, T); drawn on the CPU, so that devices see the same.

        The targets are ε, αε − σx₀ of a v-prediction model (Salimans & Ho 2022, App. D), or x₀ of one that predicts the picture.
        """
        time_B = torch.randint(len(self.alpha_bar_T), (rows,), generator=generator).to(latents_CHW.device)
        noise_BCHW = torch.randn((rows, *latents_CHW.shape), generator=generator).to(latents_CHW)
        alpha_bar_B111 = self.alpha_bar_T[time_B].reshape(-1, 1, 1, 1).to(latents_CHW)
        alpha, sigma = alpha_bar_B111.sqrt(), (1 - alpha_bar_B111).sqrt()
        targets = {
            "epsilon": noise_BCHW,
            "v_prediction": alpha * noise_BCHW - sigma * latents_CHW,
            "sample": latents_CHW.expand_as(noise_BCHW),
        }
        return Noised(alpha * latents_CHW + sigma * noise_BCHW, time_B, targets[self.prediction_type])

    def loss(self, told: Mapping[str, Tensor], noised: Noised) -> Tensor:
        """The mean squared error over all rows; `told` has one row for all of them, [1, …]."""
        rows = len(noised.time_B)
        conditions = [told[name].expand(rows, *told[name].shape[1:]) for name in self.names]
        (output_BCHW,) = self.unet(noised.x_BCHW, noised.time_B.float(), *conditions)
        return torch.nn.functional.mse_loss(output_BCHW, noised.target_BCHW)

    def accumulate_(self, told: Mapping[str, Tensor], noised: Noised, at_once: int) -> float:
        """Add the loss's gradient to that of every tensor in `told` which wants one, `at_once` rows at a time; return the loss."""
        total, rows = 0.0, len(noised.time_B)
        for part in noised.split(at_once):
            share = self.loss(told, part) * (len(part.time_B) / rows)
            share.backward()
            total += float(share.detach())
        return total


def _alpha_bar(config: Configuration) -> Tensor:
    from diffusers import DDIMScheduler

    alpha_bar_T: Tensor = DDIMScheduler.from_config(dict(config.scheduler)).alphas_cumprod
    return alpha_bar_T
