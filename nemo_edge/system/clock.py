"""What time it is, for whatever says when it was made: the clock's, or that of the environment, for builds that are the same bytes.

Knows nothing of what is made.
"""

from __future__ import annotations

__all__ = ["EPOCH", "now", "written"]

import os
from datetime import UTC, datetime
from pathlib import Path

from nemo_edge.system.errors import InputError

EPOCH = "SOURCE_DATE_EPOCH"
"""The environment's variable of reproducible-builds.org: seconds since 1970, taken for the time."""


def now() -> str:
    """Return the time, ISO 8601 in UTC to the second. Raises `InputError` where the environment says one that is none."""
    return (_told() or datetime.now(UTC)).isoformat(timespec="seconds")


def written(path: Path) -> str:
    """Return when a file was written, likewise."""
    return (_told() or datetime.fromtimestamp(path.stat().st_mtime, UTC)).isoformat(timespec="seconds")


def _told() -> datetime | None:
    told = os.environ.get(EPOCH, "")
    if not told:
        return None
    try:
        return datetime.fromtimestamp(int(told), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise InputError(f"{EPOCH}={told[:40]} is no time: give whole seconds since 1970, or unset it") from error
