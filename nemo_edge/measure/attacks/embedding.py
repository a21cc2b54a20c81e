"""The text embedding itself, optimised until the UNet takes the noise out of a known picture, and the pictures drawn with it.

Finding DoRI (Kowalczuk et al., arXiv 2507.16880) to the constant: Adam with a rate of 0.1, batches of 8, fresh noise and fresh times in
each step, the plain diffusion loss, every entry free. Of Stable Diffusion XL the pooled embedding, which is an input as well, is optimised
too. Knows nothing of whether the UNet's neurons are silenced. Shapes: S seeds, C channels, H and W of the latents.
"""

from __future__ import annotations

__all__ = ["BATCH", "FREE", "LEARNING_RATE", "EmbeddingAttack", "draw_found", "from_noise"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nemo_edge.measure.attacks.base import Found, marks
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, condition, generate, latent_shape
from nemo_edge.system.memory import pictures_at_once

LEARNING_RATE = 0.1
BATCH = 8
"""Rows of the UNet in a step, each with noise and a time of its own."""
FREE = ("encoder_hidden_states", "text_embeds")
"""What an attacker may choose; sizes and guidance stay what they are."""
_WINDOW = 10
"""Steps whose mean loss is told; that of one alone is as its eight times happen to be."""


@dataclass(frozen=True)
class EmbeddingAttack:
    """Optimises what a UNet is told towards one picture."""

    objective: Objective
    steps: int
    seed: int
    """Of noise and times: the same for every picture and start."""
    at_once: int = BATCH
    """Rows that a gradient is taken through together; fewer take less memory, and give the same gradient but for rounding."""
    advance: Callable[[int], None] = lambda done: None
    """Told of each step."""

    def __call__(self, latents_CHW: Tensor, start: Mapping[str, np.ndarray]) -> Iterator[Found]:
        """Yield the embedding at each mark, as `Attack` says."""
        generator = torch.Generator().manual_seed(self.seed)
        told = {name: torch.from_numpy(value).to(latents_CHW, copy=True) for name, value in start.items()}
        free = [told[name].requires_grad_() for name in FREE if name in told]
        optimiser, losses = torch.optim.Adam(free, lr=LEARNING_RATE), []
        for step in range(1, self.steps + 1):
            optimiser.zero_grad()
            noised = self.objective.noised(latents_CHW, BATCH, generator)
            losses.append(self.objective.accumulate_(told, noised, self.at_once))
            optimiser.step()
            self.advance(1)
            if step in marks(self.steps):
                found = {name: value.detach().cpu().numpy().copy() for name, value in told.items()}
                yield Found(step, float(np.mean(losses[-_WINDOW:])), found)


def from_noise(told: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """Return what a UNet is told with standard normal noise for all that is free."""
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(told[name].shape, generator=generator).numpy() for name in FREE if name in told}
    return {**told, **noise}


def draw_found(
    pipeline: Pipeline, told: Mapping[str, np.ndarray], seeds: Sequence[int], settings: SamplingSettings, mask: np.ndarray | None = None
) -> np.ndarray:
    """Draw a picture a seed with what was found in place of a prompt: bytes [S, height, width, 3].

    With guidance the rows without a prompt are what they are for any prompt. `mask` is [N], for a masked engine.
    """
    _, height, width = latent_shape(pipeline.config, settings)
    at_once = pictures_at_once(height * width * pipeline.config.factor**2)
    parts = [seeds[first : first + at_once] for first in range(0, len(seeds), at_once)]
    made = []
    for part in parts:
        rows = condition(pipeline, [""] * len(part), settings)
        for name in FREE:
            if name in rows:
                rows[name] = np.concatenate([rows[name][: -len(part)], np.repeat(told[name], len(part), axis=0)])
        made.append(generate(pipeline, [""] * len(part), part, settings, mask, conditioning=rows))
    return np.concatenate(made)
