"""How large activations become: histograms that grow by a tensor at a time and never in size, and the table of ranges made of them.

Magnitudes are counted by the 14 leading bits of a float32 without its sign, so that a bin is 1.6 % wide at any magnitude, and two runs over
the same values count the same. Knows neither graphs nor what draws the pictures.
"""

from __future__ import annotations

__all__ = ["APART", "COUNTED", "COUNTED_BY", "Histogram", "Limit", "Ranges", "step_of"]

from collections.abc import Callable
from math import gcd, inf, isfinite
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from nemo_edge.recipe.quantization import SHARES
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import write_atomically
from nemo_edge.system.reading import read_json

_DROPPED = 17
_BINS = 1 << (31 - _DROPPED)
COUNTED = 1 << 17
"""Values of a tensor that are counted each time; of more, some."""
APART = tuple(next(more for more in range(30) if gcd(rest + more, 30) == 1) for rest in range(30))
"""What is added to a step by its remainder of 30, so that it shares no factor with the width of a layer: it meets every channel."""
COUNTED_BY = "ranges by the 14 leading bits of magnitudes in all channels, with the errors of integers and of floats"
"""How activations are counted, for the keys of what hangs on it."""
_FINITE = 255 << (23 - _DROPPED)
"""The first bin of what is not finite."""


class Limit(NamedTuple):
    """Where a range may end, and what rounding up to there changes: roots of mean squares, relative to the values'."""

    share: float
    value: float
    integers: float
    """Rounded to 255 even levels."""
    floats: float
    """Rounded to E4M3, whose levels lie the closer the smaller they are."""


def step_of(size: int) -> int:
    """Every how many of so many values one is counted."""
    step = 1 + size // COUNTED
    return step + APART[step % 30]


class Histogram:
    """The magnitudes of a tensor's values, however many."""

    def __init__(self, counts: np.ndarray | None = None, largest: float = 0.0) -> None:
        self.counts = np.zeros(_BINS, np.int64) if counts is None else counts
        self.largest = largest

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape, of many every n-th, and look at each for the largest.

        Raises `ValueError` for one that is not finite; nothing is counted then.
        """
        flat = np.asarray(values, np.float32).ravel()
        self.add_some(flat[:: step_of(len(flat))], float(np.abs(flat).max(initial=0)))

    def add_some(self, values: np.ndarray, largest: float) -> None:
        """Count float32 values that were taken of many, and the largest magnitude of those; it is not finite where one of them is not.

        Raises `ValueError` then, and counts nothing.
        """
        if not isfinite(largest):
            raise ValueError("a value is not finite")
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).ravel() & np.uint32(0x7FFFFFFF)
        self.counts += np.bincount(bits >> np.uint32(_DROPPED), minlength=_BINS)
        self.largest = max(self.largest, largest)

    def limits(self) -> tuple[Limit, ...]:
        """Return the limit of each share of `SHARES`, the upper edge of a bin; 0 for a tensor of zeros."""
        total = int(self.counts.sum())
        below = np.cumsum(self.counts)
        bins = [int(np.searchsorted(below, share * total)) for share in SHARES]
        ends = [min(float(_magnitudes(np.asarray(number), 1)), self.largest) if total else 0.0 for number in bins]
        steps = (_integer_steps, _float_steps)
        return tuple(Limit(share, end, *(self._error(end, step) for step in steps)) for share, end in zip(SHARES, ends, strict=True))

    def _error(self, end: float, steps: Callable[[np.ndarray, float], np.ndarray]) -> float:
        values = _magnitudes(np.arange(_FINITE), 0.5)
        counts, power = self.counts[:_FINITE], float((self.counts[:_FINITE] * values**2).sum())
        if not power or not end:
            return 0.0
        step = steps(values, end)
        rounding = np.where(values < step / 2, values**2, step**2 / 12)
        wrong = np.where(values > end, (values - end) ** 2, rounding)
        return float(np.sqrt((counts * wrong).sum() / power))


def _integer_steps(values: np.ndarray, end: float) -> np.ndarray:
    """How far apart the levels are around each value."""
    return np.full(values.shape, end / 127)


def _float_steps(values: np.ndarray, end: float) -> np.ndarray:
    scale = end / 448
    exponents = np.floor(np.log2(np.maximum(values / scale, 2.0**-6)))
    steps: np.ndarray = scale * 2 ** (exponents - 3)
    return steps


def _magnitudes(bins: np.ndarray, part: float) -> np.ndarray:
    """How large a value is that lies in the middle of each bin, or another `part` of the way through it."""
    bits = (bins.astype(np.uint32) << np.uint32(_DROPPED)) + np.uint32(part * (1 << _DROPPED) - (part == 1))
    return bits.view(np.float32).astype(np.float64)


def _check_limits(limits: tuple[Limit, ...]) -> tuple[Limit, ...]:
    if tuple(limit.share for limit in limits) != SHARES:
        raise ValueError(f"expected a limit for each of the shares {', '.join(map(str, SHARES))}")
    if not all(0 <= number < inf for limit in limits for number in limit):
        raise ValueError("a limit is not a finite number from 0 on")
    return limits


Limits = Annotated[tuple[Limit, ...], AfterValidator(_check_limits)]


class Ranges(BaseModel):
    """How large the inputs and outputs of a component's modules become, and of what that was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    component: Literal["unet"]
    source: str
    """Hash of the checkpoint's files."""
    prompts: tuple[str, ...] = Field(min_length=1)
    """Whose pictures were drawn."""
    seed: int
    sampling: dict[str, str | int | float | bool | None]
    version: str
    """Of nemo-edge."""
    inputs: dict[str, Limits]
    """Of each module that is quantized, by its path."""
    outputs: dict[str, Limits]
    """Of convolutions."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `InputError` for one that is no table of ranges."""
        try:
            return cls.model_validate(read_json(path, "the ranges", remedy="give the ranges.json of a bundle"))
        except ValidationError as error:
            raise InputError(
                f"{path} holds no ranges: {error.errors()[0]['msg'].removeprefix('Value error, ')}: give the ranges.json of a bundle"
            ) from error

    def write(self, path: Path) -> None:
        """Write them, atomically; the same ranges give the same bytes."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")
