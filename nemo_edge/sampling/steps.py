"""The steps of a picture's sampler: diffusers' own where that is installed, and the bundle's table of them where it is not.

Knows latents and a UNet's output, nothing of prompts or runners. What draws noise on its way goes on with each picture's own generator, as
diffusers does with a generator a picture.
Shapes: B pictures, C channels, H and W of the latents.
"""

from __future__ import annotations

__all__ = ["DiffusersSteps", "Steps", "TableSteps", "open_steps"]

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.noise import NumpyNoise, TorchNoise
from nemo_edge.sampling.schedulers import last_latents, scheduled, step_options
from nemo_edge.sampling.steptable import StepTable
from nemo_edge.system.environment import importable
from nemo_edge.system.errors import MissingDependency


class Steps(Protocol):
    """Takes some pictures from noise to latents; each step is taken once, in order."""

    @property
    def times(self) -> Sequence[float]:
        """The UNet's time of each step."""
        ...

    def begin(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Return the first latents, float32 [B, C, H, W]; `shape` is that of a picture's."""
        ...

    def fed(self, index: int, latents_BCHW: np.ndarray) -> np.ndarray:
        """Return what the UNet is fed at a step."""
        ...

    def after(self, index: int, output_BCHW: np.ndarray, latents_BCHW: np.ndarray) -> np.ndarray:
        """Return the latents after a step, of the UNet's output; after the last one, what is decoded."""
        ...


class DiffusersSteps:
    """Those of diffusers' scheduler. Raises `InputError` as `scheduled`."""

    def __init__(self, config: Configuration, settings: SamplingSettings, seeds: Sequence[int]) -> None:
        import torch

        self._config, self._scheduler, self._tensor = config, scheduled(config, settings), torch.from_numpy
        self._noise = [TorchNoise(seed) for seed in seeds]
        self._options = step_options(self._scheduler, [noise.generator for noise in self._noise])
        self.times = [float(time) for time in self._scheduler.timesteps]

    def begin(self, shape: tuple[int, int, int]) -> np.ndarray:
        """The noise of each picture, as strong as the scheduler begins with."""
        first: np.ndarray = (self._tensor(_drawn(self._noise, shape)) * self._scheduler.init_noise_sigma).numpy()
        return first

    def fed(self, index: int, latents_BCHW: np.ndarray) -> np.ndarray:
        """The latents as the scheduler scales them."""
        scaled: np.ndarray = self._scheduler.scale_model_input(self._tensor(latents_BCHW), self._scheduler.timesteps[index]).numpy()
        return scaled

    def after(self, index: int, output_BCHW: np.ndarray, latents_BCHW: np.ndarray) -> np.ndarray:
        """The scheduler's step."""
        output, latents = self._tensor(output_BCHW), self._tensor(latents_BCHW)
        stepped = self._scheduler.step(output, self._scheduler.timesteps[index], latents, **self._options, return_dict=False)
        found: np.ndarray = (last_latents(self._config, stepped) if index == len(self.times) - 1 else stepped[0]).numpy()
        return found


class TableSteps:
    """Those of a table, with PyTorch's noise by its rules: within rounding what diffusers' scheduler gives."""

    def __init__(self, table: StepTable, seeds: Sequence[int]) -> None:
        self._table, self._noise = table, [NumpyNoise(seed) for seed in seeds]
        self._first = np.empty(0, np.float32)
        self._outputs: list[np.ndarray] = []
        self._drawn: list[np.ndarray] = []
        self.times = table.times

    def begin(self, shape: tuple[int, int, int]) -> np.ndarray:
        """The noise of each picture, as strong as the table says."""
        self._first = _drawn(self._noise, shape) * np.float32(self._table.start)
        return self._first

    def fed(self, index: int, latents_BCHW: np.ndarray) -> np.ndarray:
        """The latents times the factor of the step."""
        return latents_BCHW * np.float32(self._table.scales[index])

    def after(self, index: int, output_BCHW: np.ndarray, latents_BCHW: np.ndarray) -> np.ndarray:
        """A sum of all that came before the step."""
        self._outputs.append(output_BCHW)
        self._drawn += [_drawn(self._noise, output_BCHW.shape[1:]) for _ in range(self._table.draws[index])]
        return self._table.latents(index, self._first, self._outputs, self._drawn)


def open_steps(config: Configuration, settings: SamplingSettings, seeds: Sequence[int], table: StepTable | None = None) -> Steps:
    """The steps that `settings` ask for, a picture a seed.

    Raises `InputError` as `scheduled`, and `MissingDependency` where diffusers is not installed and `table` is not of these steps.
    """
    if importable("torch", "diffusers"):
        return DiffusersSteps(config, settings, seeds)
    if table is None or not table.fits(settings):
        has = f"this bundle's table is of {table.describe()}: ask for these steps" if table else "this bundle has none: build it again"
        raise MissingDependency(f"other steps than a table's need PyTorch and diffusers; {has}, or pip install 'nemo-edge[build]'")
    return TableSteps(table, seeds)


def _drawn(noise: Sequence[TorchNoise] | Sequence[NumpyNoise], shape: Sequence[int]) -> np.ndarray:
    return np.stack([each.draw(shape) for each in noise])
