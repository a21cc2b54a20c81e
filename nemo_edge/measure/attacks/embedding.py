"""The text embedding itself, optimised until the UNet takes the noise out of a known picture, and the pictures drawn with it.

Finding DoRI (Kowalczuk et al., arXiv 2507.16880) to the constant: Adam with a rate of 0.1, batches of 8, fresh noise and fresh times in
each step, the plain diffusion loss, every entry free. Of Stable Diffusion XL the pooled embedding, which is an input as well, is optimised
too. Knows nothing of whether the UNet's neurons are silenced. Shapes: S seeds, C channels, H and W of the latents.
"""

from __future__ import annotations

__all__ = ["BATCH", "FREE", "LEARNING_RATE", "EmbeddingAttack", "EmbeddingSearch", "draw_found", "from_noise"]

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


class EmbeddingSearch:
    """One embedding on its way towards a picture, a step at a time; the weights may change between its steps."""

    def __init__(
        self,
        objective: Objective,
        latents_CHW: Tensor,
        start: Mapping[str, np.ndarray],
        generator: torch.Generator,
        at_once: int = BATCH,
        rate: float = LEARNING_RATE,
        optimiser: Callable[..., torch.optim.Optimizer] = torch.optim.Adam,
    ) -> None:
        self.told = {name: torch.from_numpy(value).to(latents_CHW, copy=True) for name, value in start.items()}
        """A row of each input, as it is now."""
        self._objective, self._latents_CHW, self._generator, self._at_once = objective, latents_CHW, generator, at_once
        self._optimiser = optimiser([self.told[name].requires_grad_() for name in FREE if name in self.told], lr=rate)

    def step(self) -> float:
        """Go one step; return the loss before it."""
        self._optimiser.zero_grad()
        noised = self._objective.noised(self._latents_CHW, BATCH, self._generator)
        loss = self._objective.accumulate_(self.told, noised, self._at_once)
        self._optimiser.step()
        return loss

    def state(self) -> dict[str, Any]:
        """What a search of the same picture and generator goes on from."""
        return {"told": {name: value.detach() for name, value in self.told.items()}, "optimiser": self._optimiser.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        with torch.no_grad():
            for name, value in state["told"].items():
                self.told[name].copy_(value)
        self._optimiser.load_state_dict(state["optimiser"])


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
        search = EmbeddingSearch(self.objective, latents_CHW, start, torch.Generator().manual_seed(self.seed), self.at_once)
        losses = []
        for step in range(1, self.steps + 1):
            losses.append(search.step())
            self.advance(1)
            if step in marks(self.steps):
                found = {name: value.detach().cpu().numpy().copy() for name, value in search.told.items()}
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
