"""Checks a feed against what a graph takes, so that every backend refuses the same things with the same words."""

from __future__ import annotations

__all__ = ["check_feed", "in_batches", "pinned_batch"]

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nemo_edge.model.component import VALUE_MASK
from nemo_edge.system.errors import InputError


def check_feed(feed: Mapping[str, np.ndarray], inputs: Mapping[str, Sequence[int | str | None]]) -> None:
    """Raise `InputError` unless `feed` has exactly `inputs`, of their ranks and fixed dimensions, with a mask in [0, 1]."""
    missing, extra = [n for n in inputs if n not in feed], [n for n in feed if n not in inputs]
    if missing or extra:
        problem = f"lacks {missing[0]!r}" if missing else f"has no input {extra[0]!r}"
        raise InputError(f"the feed {problem}: this graph takes {', '.join(inputs)}")
    for name, expected in inputs.items():
        shape = feed[name].shape
        if len(shape) != len(expected) or any(isinstance(e, int) and e != s for s, e in zip(shape, expected, strict=True)):
            wanted = ", ".join(str(e) for e in expected)
            raise InputError(f"input {name!r} has shape [{', '.join(map(str, shape))}], expected [{wanted}]")
    mask = feed.get(VALUE_MASK)
    if mask is not None and not ((mask >= 0) & (mask <= 1)).all():
        raise InputError(f"{VALUE_MASK} must hold factors from 0 to 1, but has NaN or values outside: check how it was made")


def pinned_batch(inputs: Mapping[str, Sequence[int | str | None]]) -> int | None:
    """Return the number of rows that every input of a graph has, which is then run in parts of that size; None where it is free."""
    first = {dims[0] for dims in inputs.values()}
    pinned = first.pop() if len(first) == 1 else None
    return pinned if isinstance(pinned, int) else None


def in_batches(
    feed: Mapping[str, np.ndarray], size: int, run: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Run a feed of any number of rows on a graph whose batch is pinned to `size`; the last part is filled up with its last row."""
    rows = len(next(iter(feed.values())))
    parts = []
    for start in range(0, rows, size):
        part = {name: value[start : start + size] for name, value in feed.items()}
        missing = size - len(next(iter(part.values())))
        full = {name: np.concatenate([value, np.repeat(value[-1:], missing, axis=0)]) for name, value in part.items()}
        parts.append({name: value[: size - missing] for name, value in run(full).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
