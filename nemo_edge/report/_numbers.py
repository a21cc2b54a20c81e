"""How numbers and counts are written for people, the same in every form of the report."""

from __future__ import annotations

__all__ = ["clipped", "count", "joined", "moment", "number", "ratio", "share"]

from collections.abc import Sequence
from datetime import datetime
from math import inf, isfinite

from nemo_edge.measure.latency import Ratio


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with so many significant digits, without zeros that say nothing; "–" for None."""
    if value is None:
        return "–"
    if not isfinite(value):
        return {inf: "∞", -inf: "−∞"}.get(value, "not a number")
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}" if abs(value) < 10**7 else f"{value:.{digits - 1}e}".replace("e+0", "e")
    return f"{value:.{digits}g}".replace("e-0", "e-")


def count(amount: int, noun: str, plural: str = "") -> str:
    """Write an amount with its noun: "1 prompt", "no prompts", "12 prompts"."""
    return f"{amount or 'no'} {noun if amount == 1 else plural or noun + 's'}"


def joined(words: Sequence[str]) -> str:
    """Write words as a list: "a, b and c"."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def ratio(value: Ratio | None) -> str:
    """Write a ratio with its interval; "–" for None."""
    return "–" if value is None else f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def moment(date: str) -> str:
    """Write an ISO date and time to the minute; another text as it is."""
    try:
        when = datetime.fromisoformat(date)
    except ValueError:
        return date
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".strip() if "T" in date else date


def share(value: float) -> str:
    """Write a share as a percentage."""
    return f"{number(value * 100, 2)} %"


def clipped(text: str, length: int) -> str:
    """Cut a text that is longer than `length`, on one line and without characters that cannot be shown."""
    clean = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in text)
    return clean if len(clean) <= length else clean[: length - 1].rstrip() + "…"
