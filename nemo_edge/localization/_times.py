"""How long each search took, in a file beside what was found: what is found is the same each time, and the time that it takes is not.

Knows files; nothing of searches.
"""

from __future__ import annotations

__all__ = ["TIMES", "Time", "append_timed", "times_beside"]

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nemo_edge.system.journal import append, read_lines

TIMES = "localization_times.jsonl"

Of = Literal["prompt", "group"]


class Time(BaseModel):
    """Wall time of one search."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    of: Of
    name: str
    """The prompt's text, or the group's name."""
    seconds: float


def append_timed(path: Path, result: BaseModel, time: Time) -> None:
    """Append a result to a file without its `seconds`, and these to the file of times beside it."""
    append(path, result, leave={"seconds"})
    append(path.with_name(TIMES), time)


def times_beside(path: Path, of: Of) -> dict[str, float]:
    """Return the seconds that each search of a kind took whose result is in a file, by its name; nothing where they were not kept.

    Raises `InputError` for a file of times that is none.
    """
    times = path.with_name(TIMES)
    return {time.name: time.seconds for time in read_lines(Time, times) if time.of == of} if times.is_file() else {}
