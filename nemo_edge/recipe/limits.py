"""How large a number that somebody gives may be: beyond it nobody means it, and the work would not end or not fit any memory."""

from __future__ import annotations

__all__ = ["MOST_PIXELS", "MOST_SEED", "Count", "Factor", "Pixels", "Rows", "Seconds", "Seed", "Share", "Size", "check_seed"]

from typing import Annotated

from pydantic import BeforeValidator, Field

from nemo_edge.system.errors import InputError

MOST_SEED = 2**63 - 1
"""The largest seed: what a signed number of 64 bits holds."""
MOST_PIXELS = 8192
"""The longest side of a picture."""

Seed = Annotated[int, Field(ge=0, le=MOST_SEED - 2**20)]
"""The first of the seeds of many pictures."""
Pixels = Annotated[int, Field(ge=8, le=MOST_PIXELS, multiple_of=8)]
Rows = Annotated[int, Field(ge=1, le=4096)]
"""What runs together: rows of a batch, threads, prompts."""
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Rounds, calls, prompts of a list."""
Factor = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
"""A guidance scale, a size of a set beside another, a number of standard deviations."""
Seconds = Annotated[float, Field(ge=0, le=86_400, allow_inf_nan=False)]


def _size(value: object) -> object:
    if not isinstance(value, str):
        return value
    height, _, width = value.lower().partition("x")
    if not (height.isdigit() and width.isdigit()):
        raise ValueError("a size is HEIGHTxWIDTH in pixels, like 512x512")
    return int(height), int(width)


Size = Annotated[tuple[int, int], BeforeValidator(_size, json_schema_input_type=str | tuple[int, int])]
"""Height and width in pixels, "512x768" or [512, 768]."""
Share = Annotated[float, Field(ge=0, le=1)]


def check_seed(seed: int, count: int = 1) -> None:
    """Raise `InputError` for a seed that no generator takes, or whose last of `count` pictures none would."""
    if not 0 <= seed <= MOST_SEED - count:
        raise InputError(f"--seed {seed}: give a whole number from 0 to {MOST_SEED - count}")
