"""A sampler's steps as numbers, saved with a bundle, so that it draws where neither PyTorch nor diffusers is installed.

Every scheduler that a recipe may name is linear: the latents after a step are a sum of the first latents, of the UNet's outputs so far and
of the noise drawn so far, each with a factor that hangs on none of them. The factors are read off diffusers' own scheduler, which is
stepped once with one-hot vectors, and tried against it; one that clips, which is not linear, has no table.
Shapes: B pictures, C channels, H and W of the latents; P places of a probe: that of the first latents, one an output, and others whose
latents and outputs are 0, so that all in them is noise; K draws of noise so far.
"""

from __future__ import annotations

__all__ = ["MOST_STEPS", "STEPS_FILE", "StepTable", "read_table", "tabulate", "write_table"]

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.noise import TorchNoise
from nemo_edge.sampling.schedulers import last_latents, scheduled, step_options
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import write_atomically
from nemo_edge.system.reading import read_bytes

if TYPE_CHECKING:
    import torch

STEPS_FILE = "scheduler/steps.json"
"""Its path in a bundle."""
MOST_STEPS = 250
"""Of more steps no table is made, whose size is the square of it. Ours."""

_KEYS = ("scheduler", "timestep_spacing", "karras", "steps")
"""The settings that a table is of."""
_QUIET = 64
"""Places of a probe that hold noise alone, beside two a step: more than there are draws, so that their factors are solved for."""
_TINY = 1e-7
_TOLERANCE = 1e-3
"""How far from diffusers' own latents those of a table may end, of their largest value: rounding stays below a hundredth of that. Ours."""


class StepTable(BaseModel):
    """The steps of a sampler."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    settings: dict[str, str | bool | int | None]
    """The settings of sampling that they are of."""
    times: tuple[float, ...]
    """The UNet's time of each step."""
    start: float
    """The factor of the first noise."""
    scales: tuple[float, ...]
    """Of each step, the factor of the latents that the UNet is fed."""
    draws: tuple[int, ...]
    """Of each step, how often noise is drawn in it."""
    factors: tuple[tuple[float, ...], ...]
    """Of the latents after each step: the factors of the first latents, of the UNet's outputs so far, and of the noise drawn so far."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        sizes = [2 + index + drawn for index, drawn in enumerate(accumulate(self.draws))]
        if not len(self.times) == len(self.scales) == len(self.draws) or [len(row) for row in self.factors] != sizes:
            raise ValueError("the factors are not those of so many steps")
        return self

    def latents(self, index: int, first_BCHW: np.ndarray, outputs: Sequence[np.ndarray], noise: Sequence[np.ndarray]) -> np.ndarray:
        """The latents after step `index`, float32 [B, C, H, W], of the first latents and of all outputs and draws of noise up to there."""
        found = np.zeros(first_BCHW.shape)
        for factor, part_BCHW in zip(self.factors[index], (first_BCHW, *outputs, *noise), strict=True):
            if factor:
                found += factor * part_BCHW
        return found.astype(np.float32)

    def fits(self, settings: SamplingSettings) -> bool:
        """Whether it is of the steps that `settings` ask for."""
        return self.settings == _of(settings)

    def describe(self) -> str:
        """The settings in words."""
        return ", ".join(f"{key} = {value}" for key, value in self.settings.items() if value is not None)


def write_table(bundle: Path, config: Configuration, settings: SamplingSettings) -> bool:
    """Write the table of the steps that `settings` ask for into a bundle; return whether there is one.

    Raises `InputError` as `scheduled` does.
    """
    table = tabulate(config, settings)
    if table is not None:
        write_atomically(bundle / STEPS_FILE, table.model_dump_json() + "\n")
    return table is not None


def read_table(bundle: Path) -> StepTable | None:
    """Return the table of a bundle, None where it has none. Raises `BundleError` for one that cannot be read."""
    path = bundle / STEPS_FILE
    if not path.is_file():
        return None
    try:
        return StepTable.model_validate_json(read_bytes(path))
    except (InputError, ValidationError) as error:
        raise BundleError(f"{path} is no table of a sampler's steps: build the bundle again") from error


def tabulate(config: Configuration, settings: SamplingSettings) -> StepTable | None:
    """Read the steps off diffusers' scheduler; None for one that is not linear, and for more than `MOST_STEPS`.

    Raises `InputError` as `scheduled` does.
    """
    scheduler = scheduled(config, settings)
    if len(scheduler.timesteps) > MOST_STEPS:
        return None
    probe = _Probe(config, scheduler)
    for index in range(len(scheduler.timesteps)):
        probe.step(index)
    table = StepTable(
        settings=_of(settings),
        times=tuple(float(t) for t in scheduler.timesteps),
        start=float(scheduler.init_noise_sigma),
        scales=tuple(probe.scales),
        draws=tuple(probe.draws),
        factors=tuple(probe.factors),
    )
    return table if _agrees(table, config, settings) else None


def _agrees(table: StepTable, config: Configuration, settings: SamplingSettings) -> bool:
    """Whether latents of random outputs end where diffusers' own do."""
    import torch

    scheduler, rng, shape = scheduled(config, settings), np.random.default_rng(0), (1, 4, 8, 8)
    theirs, ours = TorchNoise(0), TorchNoise(0)
    first = theirs.draw(shape) * np.float32(table.start)
    ours.draw(shape)
    latents, outputs, noise, options = torch.from_numpy(first), [], [], step_options(scheduler, [theirs.generator])
    for index, time in enumerate(scheduler.timesteps):
        outputs.append(rng.standard_normal(shape, dtype=np.float32))
        noise += [ours.draw(shape) for _ in range(table.draws[index])]
        scheduler.scale_model_input(latents, time)
        stepped = scheduler.step(torch.from_numpy(outputs[-1]), time, latents, **options, return_dict=False)
        latents = last_latents(config, stepped) if index == len(table.times) - 1 else stepped[0]
    found = table.latents(len(table.times) - 1, first, outputs, noise)
    return bool(np.abs(found - latents.numpy()).max() <= _TOLERANCE * np.abs(latents.numpy()).max())


def _of(settings: SamplingSettings) -> dict[str, str | bool | int | None]:
    return {key: getattr(settings, key) for key in _KEYS}


class _Probe:
    """Steps a scheduler with latents [1, 1, 1, P], and reads off what became of them."""

    def __init__(self, config: Configuration, scheduler: Any) -> None:
        import torch

        self._torch, self._config, self._scheduler = torch, config, scheduler
        steps = len(scheduler.timesteps)
        self._quiet = _QUIET + 2 * steps
        self._shape = (1, 1, 1, 1 + steps + self._quiet)
        self._latents = torch.zeros(self._shape)
        self._latents[..., 0] = 1
        self._generator = torch.Generator().manual_seed(0)
        self._noise_KP: list[np.ndarray] = []
        self.scales: list[float] = []
        self.draws: list[int] = []
        self.factors: list[tuple[float, ...]] = []

    def step(self, index: int) -> None:
        """Take a step with an output that is 1 in a place of its own."""
        scheduler, time = self._scheduler, self._scheduler.timesteps[index]
        output = self._torch.zeros(self._shape)
        output[..., 1 + index] = 1
        self.scales.append(_rounded(float(scheduler.scale_model_input(self._torch.ones(self._shape), time)[0, 0, 0, 0])))
        before = self._generator.get_state()
        options = step_options(scheduler, [self._generator])
        stepped = scheduler.step(output, time, self._latents, **options, return_dict=False)
        self.draws.append(self._drawn(before))
        self._latents = last_latents(self._config, stepped) if index == len(scheduler.timesteps) - 1 else stepped[0]
        self.factors.append(tuple(_rounded(factor) for factor in self._read(self._latents.double().numpy().reshape(-1), index)))

    def _drawn(self, before: torch.Tensor) -> int:
        """How often the generator was asked since it was as `before`; what it gave is kept."""
        again, count = self._torch.Generator(), 0
        again.set_state(before)
        while not self._torch.equal(again.get_state(), self._generator.get_state()):
            self._noise_KP.append(self._torch.randn(self._shape, generator=again).double().numpy().reshape(-1))
            count += 1
        return count

    def _read(self, latents_P: np.ndarray, index: int) -> Sequence[float]:
        """The factors in the latents: those of noise from the places that hold nothing else, and the others without it."""
        if not self._noise_KP:
            return list(latents_P[: 2 + index])
        noise_KP = np.stack(self._noise_KP)
        noise_K = np.linalg.lstsq(noise_KP[:, -self._quiet :].T, latents_P[-self._quiet :], rcond=None)[0]
        return [*(latents_P - noise_K @ noise_KP)[: 2 + index], *noise_K]


def _rounded(factor: float) -> float:
    """To float32's digits, and what is rounding alone to 0."""
    return 0.0 if abs(factor) < _TINY else float(f"{factor:.9g}")
