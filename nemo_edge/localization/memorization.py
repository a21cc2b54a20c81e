"""Is a prompt memorized? Noise differences, the memorization score, and the threshold τ.

After Hintersdorf et al., "Finding NeMo" (NeurIPS 2024), §3.1, as its official code does it: δ at the *second* of 50 DDIM
steps (the paper says the first), MS-SSIM (the paper says SSIM), min-max scaling per sample and channel.
Knows runners, not what runs them. Shapes: S seeds, C channels, H and W of the latents, P = S(S-1)/2 pairs of seeds.
"""

from __future__ import annotations

__all__ = ["NoiseProbe", "Threshold", "finite", "firm_seed_scores", "scaled", "seed_scores", "threshold_of"]

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nemo_edge.backends.base import Runner
from nemo_edge.localization.multiscale import ROUNDING, pairwise_scores, plain_pairwise_scores
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.system.errors import InputError

_SHOWN = 60
"""Letters of a prompt that an error shows."""


@dataclass(frozen=True)
class Threshold:
    """τ = mean + one standard deviation of the per-prompt highest pairwise score over general prompts (paper §3.1)."""

    mean: float
    std: float

    @property
    def value(self) -> float:
        """τ itself."""
        return self.mean + self.std


@dataclass(frozen=True)
class NoiseProbe:
    """Predicts the noise of S fixed latents for a prompt, without guidance, and returns δ.

    One batch of latents from one seed, as the official code draws it (the paper's Alg. 1 seeds each one).
    """

    latents_SCHW: Tensor
    timestep: float
    alpha: float
    sigma: float
    prediction_type: str
    told: Mapping[str, np.ndarray] = field(default_factory=dict)
    """One row of what the UNet of a consistency model is told of the guidance, which for it is no second forward."""

    @classmethod
    def of(cls, config: Configuration, settings: LocalizationSettings, shape: tuple[int, int, int] | None = None) -> NoiseProbe:
        """The probe of a model: `samples` latents of its own size (or of `shape`), at `timesteps[1]` of `steps` DDIM steps."""
        from diffusers import DDIMScheduler

        if config.prediction_type not in ("epsilon", "v_prediction"):
            raise InputError(f"a model that predicts {config.prediction_type!r} has no noise difference: epsilon or v_prediction needed")
        scheduler = DDIMScheduler.from_config(dict(config.scheduler))
        scheduler.set_timesteps(settings.steps)
        timestep = int(scheduler.timesteps[1])
        alpha_bar = float(scheduler.alphas_cumprod[timestep])
        told = config.told_guidance(settings.guidance, 1)
        generator = torch.Generator().manual_seed(settings.seed)
        latents = torch.randn((settings.samples, *(shape or config.latent_shape)), generator=generator)
        return cls(latents, float(timestep), alpha_bar**0.5, (1 - alpha_bar) ** 0.5, config.prediction_type, told)

    def __call__(
        self,
        unet: Runner,
        conditioning: Mapping[str, np.ndarray],
        seeds: Sequence[int] | None = None,
        mask: np.ndarray | None = None,
        at_once: int | None = None,
    ) -> Tensor:
        """Return δ, scaled to [0, 1] per sample and channel: float32 [S, C, H, W].

        `conditioning` holds one row ([1, …]); `seeds` picks some of the latents; `mask` is [N], for a masked UNet; no more than
        `at_once` rows are run together.
        """
        x_SCHW = self.latents_SCHW if seeds is None else self.latents_SCHW[list(seeds)]
        parts = torch.split(x_SCHW, at_once or len(x_SCHW))
        return torch.cat([self._difference(unet, conditioning, x, mask) for x in parts])

    def _difference(self, unet: Runner, conditioning: Mapping[str, np.ndarray], x_SCHW: Tensor, mask: np.ndarray | None) -> Tensor:
        count = len(x_SCHW)
        rows = {name: np.repeat(value, count, axis=0) for name, value in conditioning.items()}
        if VALUE_MASK in unet.inputs:
            width = int(unet.inputs[VALUE_MASK][1] or 0)
            rows[VALUE_MASK] = np.broadcast_to(np.ones(width, np.float32) if mask is None else mask, (count, width))
        return self.difference(unet, rows, x_SCHW)

    def difference(self, unet: Runner, feed: Mapping[str, np.ndarray], x_SCHW: Tensor) -> Tensor:
        """Return δ of the latents given, scaled; `feed` holds what else the UNet takes, row by row."""
        return scaled(self.noise(unet, feed, x_SCHW) - x_SCHW)

    def noise(self, unet: Runner, feed: Mapping[str, np.ndarray], x_SCHW: Tensor) -> Tensor:
        """Return ε, the noise predicted of the latents given; `feed` holds what else the UNet takes, row by row."""
        time = np.full(len(x_SCHW), self.timestep, np.float32)
        told = {name: np.repeat(row, len(x_SCHW), axis=0) for name, row in self.told.items()}
        output = unet({**feed, **told, "sample": x_SCHW.numpy(), "timestep": time})["out_sample"]
        return self._epsilon(torch.from_numpy(output), x_SCHW)

    def _epsilon(self, output: Tensor, x: Tensor) -> Tensor:
        """The predicted noise: the output itself, or αv + σx for a v-prediction model (Salimans & Ho 2022, App. D)."""
        return output if self.prediction_type == "epsilon" else self.alpha * output + self.sigma * x


def seed_scores(scores_P: Tensor, count: int) -> Tensor:
    """Return for each of `count` seeds its highest score over the pairs it is in, [S]."""
    pairs_P2 = torch.combinations(torch.arange(count), r=2)
    return torch.stack([scores_P[(pairs_P2 == seed).any(dim=1)].max() for seed in range(count)])


def firm_seed_scores(delta_SCHW: Tensor, threshold: float, anew: Callable[[], Tensor]) -> Tensor:
    """Return for each seed its highest score over the pairs it is in, [S], so that comparing it with `threshold` decides as the
    official code does: where one is nearer to it than rounding, all are of `anew()` and by the plain arithmetic.

    `anew` gives δ of a prompt alone by the whole UNet in float32, [S, C, H, W].
    """
    scores_S = seed_scores(pairwise_scores(delta_SCHW), len(delta_SCHW))
    if ((scores_S - threshold).abs() < ROUNDING).any():
        return seed_scores(plain_pairwise_scores(anew()), len(delta_SCHW))
    return scores_S


def threshold_of(highest: Sequence[float]) -> Threshold:
    """Return τ's mean and standard deviation from the highest pairwise score of each general prompt."""
    values = torch.tensor(highest, dtype=torch.float64)
    return Threshold(float(values.mean()), float(values.std()))


def finite(values: Tensor, what: str, prompt: str) -> Tensor:
    """Return what was computed for a prompt as it is. Raises `InputError` where a value is no number, which no comparison finds large."""
    count = int((~values.isfinite()).sum())
    if count == 0:
        return values
    text = prompt if len(prompt) <= _SHOWN else f"{prompt[: _SHOWN - 1]}…"
    raise InputError(
        f"{what} of the prompt {text!r}: {count} of {values.numel()} are not finite numbers: the checkpoint's weights are not, or the "
        "noise that it predicts is the same everywhere; check that diffusers draws with it, or take another checkpoint"
    )


def scaled(delta_SCHW: Tensor) -> Tensor:
    """Return δ scaled to [0, 1] per sample and channel, as the official code does (the paper does not say so)."""
    low, high = delta_SCHW.amin(dim=(2, 3), keepdim=True), delta_SCHW.amax(dim=(2, 3), keepdim=True)
    return (delta_SCHW - low) / (high - low)
