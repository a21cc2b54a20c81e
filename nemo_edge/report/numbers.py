"""How numbers and counts are written for people, the same in every form of the report."""

from __future__ import annotations

__all__ = ["clipped", "count", "joined", "number", "ratio", "share"]

from collections.abc import Sequence
from math import inf, isfinite

from nemo_edge.latency import Ratio


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits; "–" for None."""
    if value is None:
        return "–"
    if not isfinite(value):
        return {inf: "∞", -inf: "−∞"}.get(value, "not a number")
    if value and (abs(value) < 1e-3 or abs(value) >= 10**6):
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 0
    return f"{value:.{max(0, digits - whole)}f}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """Write an amount with its noun: "1 prompt", "no prompts", "12 prompts"."""
    return f"{amount or 'no'} {noun if amount == 1 else plural or noun + 's'}"


def joined(words: Sequence[str]) -> str:
    """Write words as a list: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def ratio(value: Ratio | None) -> str:
    """Write a ratio with its interval; "–" for None."""
    return "–" if value is None else f"{number(value.value)} ({number(value.low)} to {number(value.high)})"


def share(value: float) -> str:
    """Write a share as a percentage."""
    return f"{number(value * 100, 2)} %"


def clipped(text: str, length: int) -> str:
    """Cut a text that is longer than `length`, on one line and without characters that cannot be shown."""
    clean = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
    return clean if len(clean) <= length else clean[: length - 1].rstrip() + "…"
