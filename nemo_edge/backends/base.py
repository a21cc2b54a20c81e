"""What runs a component. One file a backend, each with the same verbs; all hand out the same kind of runner."""

from __future__ import annotations

__all__ = ["Operator", "Runner"]

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import numpy as np


@dataclass(frozen=True)
class Operator:
    """What a runtime's own profiler says of an operator that it runs, which may be several of the graph's."""

    name: str
    """The runtime's, mostly that of one of the graph's nodes in it."""
    kind: str
    ms: float
    """Of one call."""
    macs: int = 0
    """Multiplications with an addition, of a matrix product or a convolution whose sizes the profiler tells."""
    integers: bool = False
    """Whether it is a product or a convolution that multiplies integers."""


class Runner(Protocol):
    """Calls a component: a mapping of named arrays in, a mapping of named arrays out.

    Float inputs are cast to what the graph takes; float outputs come back as float32. Leaving the context frees what the
    runner holds.
    """

    @property
    def inputs(self) -> Mapping[str, tuple[int | str | None, ...]]:
        """The inputs it takes and their dimensions (a number, or a name for any)."""
        ...

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Raises `InputError` for a missing input, a wrong shape or a mask that is not finite."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
