"""Graphs that OpenVINO compiled, kept in the user's cache folder, so that the next start reads instead of compiling.

OpenVINO tells its files apart by a hash of its own and writes them in place. Here each lies in a folder that is named by the sha256 of all
that it was made of, and appears there whole. Whatever goes wrong with a cache, the graph is compiled. Knows nothing of bundles.
"""

from __future__ import annotations

__all__ = ["compile_cached", "folder_of"]

import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_json, user_cache

_MOST_BYTES = 10_000_000_000
"""Of the whole cache; what was not used for longest goes first. What is larger than half of it is not kept."""


def folder_of(made_of: object) -> Path | None:
    """The folder of a compiled graph, by the JSON of all that it depends on; None for a user without a home."""
    with suppress(InputError):
        return user_cache("openvino") / sha256_json(made_of)[:32]
    return None


def compile_cached(compile_with: Callable[[dict[str, Any]], Any], folder: Path | None, size_bytes: int) -> Any:
    """Compile with the options for a cache at `folder`, or without where none can be kept; `size_bytes` is that of the weights.

    Raises what `compile_with` raises without a cache.
    """
    if folder is None or (not folder.is_dir() and not _room_made(folder.parent, size_bytes)):
        return compile_with({})
    staged = folder if folder.is_dir() else folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        compiled = compile_with({"CACHE_DIR": str(staged)})
        with suppress(OSError):  # another process may have been first
            if staged != folder:
                _settle(staged, folder)
            os.utime(folder)
        return compiled
    except RuntimeError:  # no right to write there, a full disk: it only saves time
        return compile_with({})
    finally:
        if staged != folder:
            shutil.rmtree(staged, ignore_errors=True)


def _settle(staged: Path, folder: Path) -> None:
    """Put what was written into its place, on the disk before it has its name where the system can say so of a file that is only read."""
    for path in staged.iterdir():
        with suppress(OSError), path.open("rb") as file:
            os.fsync(file.fileno())
    staged.rename(folder)


def _room_made(root: Path, needed: int) -> bool:
    """Whether so many bytes may be kept; what was used last longest ago is removed for them."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        if needed > _MOST_BYTES / 2 or needed > shutil.disk_usage(root).free / 2:
            return False
        left = _MOST_BYTES - needed
        for folder in sorted(root.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True):
            left -= sum(path.stat().st_size for path in folder.iterdir())
            if left < 0:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return False
    return True
