"""Hub ids with the revision that is meant, `owner/name@revision`: one word, so that whatever opens a checkpoint opens that one.

Knows how they are written; nothing of the hub.
"""

from __future__ import annotations

__all__ = ["hub_id", "with_revision"]

import re

_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(\S+))?")
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,199}")


def hub_id(path: str) -> tuple[str, str] | None:
    """Return the id and the revision, empty for none, that a checkpoint's path is by its form; None for any other."""
    found = _ID.fullmatch(path)
    return (found[1], found[2] or "") if found else None


def with_revision(path: str, revision: str) -> str:
    """Return a hub id with a revision. Raises `ValueError` for what is no hub id, one that has one already, and for no revision."""
    named = hub_id(path)
    if named is None or named[1]:
        raise ValueError(f"revision {revision!r} pins a hub id, owner/name: for {path!r} leave it out")
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise ValueError(f"revision {revision!r} is none: give a commit, a tag or a branch of {path}")
    return f"{path}@{revision}"
