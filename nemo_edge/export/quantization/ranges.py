"""How large activations become: histograms that grow by a tensor at a time and never in size, and the table of ranges made of them.

Magnitudes are counted by the 14 leading bits of a float32 without its sign, so that a bin is 1.6 % wide at any magnitude, and two runs over
the same values count the same. Knows neither graphs nor what draws the pictures.
"""

from __future__ import annotations

__all__ = ["Histogram", "Limit", "Ranges"]

from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.recipe.quantization import SHARES
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.files import write_atomically

_DROPPED = 17
_BINS = 1 << (31 - _DROPPED)
_FINITE = 255 << (23 - _DROPPED)
"""The first bin of what is not finite."""


class Limit(NamedTuple):
    """Where a range may end, and what rounding to 255 levels up to there changes: the root of the mean square, relative to the values'."""

    share: float
    value: float
    error: float


class Histogram:
    """The magnitudes of a tensor's values, however many."""

    def __init__(self, counts: np.ndarray | None = None, largest: float = 0.0) -> None:
        self.counts = np.zeros(_BINS, np.int64) if counts is None else counts
        self.largest = largest

    def add(self, values: np.ndarray) -> None:
        """Count float32 values of any shape. Raises `ValueError` for one that is not finite; nothing is counted then."""
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32).ravel() & np.uint32(0x7FFFFFFF)
        found = np.bincount(bits >> np.uint32(_DROPPED), minlength=_BINS)
        if found[_FINITE:].any():
            raise ValueError("a value is not finite")
        self.counts += found
        self.largest = max(self.largest, float(bits.max(initial=0).view(np.float32)))

    def limits(self) -> tuple[Limit, ...]:
        """Return the limit of each share of `SHARES`, the upper edge of a bin; 0 for a tensor of zeros."""
        total = int(self.counts.sum())
        below = np.cumsum(self.counts)
        bins = [int(np.searchsorted(below, share * total)) for share in SHARES]
        ends = [min(float(_magnitudes(np.asarray(number), 1)), self.largest) if total else 0.0 for number in bins]
        return tuple(Limit(share, end, self._error(end)) for share, end in zip(SHARES, ends, strict=True))

    def _error(self, end: float) -> float:
        values = _magnitudes(np.arange(_FINITE), 0.5)
        counts, power = self.counts[:_FINITE], float((self.counts[:_FINITE] * values**2).sum())
        if not power or not end:
            return 0.0
        step = end / 127
        rounding = np.where(values < step / 2, values**2, step**2 / 12)
        wrong = np.where(values > end, (values - end) ** 2, rounding)
        return float(np.sqrt((counts * wrong).sum() / power))


def _magnitudes(bins: np.ndarray, part: float) -> np.ndarray:
    """How large a value is that lies in the middle of each bin, or another `part` of the way through it."""
    bits = (bins.astype(np.uint32) << np.uint32(_DROPPED)) + np.uint32(part * (1 << _DROPPED) - (part == 1))
    return bits.view(np.float32).astype(np.float64)


class Ranges(BaseModel):
    """How large the inputs and outputs of a component's modules become, and of what that was found."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    component: str
    source: str
    """Hash of the checkpoint's files."""
    prompts: tuple[str, ...]
    """Whose pictures were drawn."""
    seed: int
    sampling: dict[str, str | int | float | bool | None]
    version: str
    """Of nemo-edge."""
    inputs: dict[str, tuple[Limit, ...]]
    """Of each module that is quantized, by its path."""
    outputs: dict[str, tuple[Limit, ...]]
    """Of convolutions."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises `InputError` for one that is no table of ranges."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}: give the ranges.json of a bundle") from error
        except ValidationError as error:
            raise InputError(f"{path} holds no ranges: {first_line(error)}: give the ranges.json of a bundle") from error

    def write(self, path: Path) -> None:
        """Write them, atomically; the same ranges give the same bytes."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")
