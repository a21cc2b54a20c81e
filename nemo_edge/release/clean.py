"""What nemo-edge keeps to be faster the next time, and what killed runs have left: how much it is, and away with it.

Caches are in the user's cache folder, and beside each bundle, `.<bundle>.build`; all that is in them can be made again. Knows names and
sizes, nothing of what is in them. What a killed `ship` left in a repository is for the next one.
"""

from __future__ import annotations

__all__ = ["Cleaned", "Found", "clean"]

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nemo_edge.release._cache import cache_of, is_cache
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import leftovers, user_cache
from nemo_edge.system.outputs import beside, discard, former_of, lock, remove

_BESIDE = re.compile(r"\.(?P<name>.+)\.(?:build|hardening|former|[0-9a-f]{8}\.part)")
"""What of ours can lie beside an output."""

Kind = Literal["leftover", "stages", "unfinished", "cache"]


class Found(BaseModel):
    """Something that can go."""

    model_config = ConfigDict(frozen=True)

    path: str
    kind: Kind
    """`leftover` of a killed run, `stages` of a build, an `unfinished` hardening, or a `cache` of the user's."""
    size_bytes: int
    removed: bool = False
    note: str = ""
    """Why it was not removed, where it was to be."""


class Cleaned(BaseModel):
    """What was found, and what of it is gone."""

    model_config = ConfigDict(frozen=True)

    folder: str
    found: tuple[Found, ...]

    @property
    def removed_bytes(self) -> int:
        """The size of what is gone."""
        return sum(each.size_bytes for each in self.found if each.removed)


def clean(folder: Path = Path(), *, everything: bool = False) -> Cleaned:
    """Remove what killed runs have left beside `folder`, a bundle, and beside those in it; with `everything` the caches, too.

    What another command is writing to is left alone. Raises `InputError` for a folder that is not there.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give a bundle, or a folder of bundles")
    found = [each for output in _outputs(folder) for each in _of_output(output, everything)]
    return Cleaned(folder=str(folder), found=(*found, *_of_user(everything)))


def _outputs(folder: Path) -> list[Path]:
    """The folder itself, and every output in it that something of ours lies beside."""
    whole = folder.resolve()
    named = (_BESIDE.fullmatch(path.name) for path in whole.iterdir())
    return [whole, *(whole / name for name in sorted({match["name"] for match in named if match}))]


def _of_output(output: Path, everything: bool) -> Iterator[Found]:
    """What lies beside an output, and is gone from there where it is to be and no other command holds it."""
    temporary = [*leftovers(output), *(former_of(output) for _ in [0] if output.exists() and former_of(output).is_dir())]
    kept: list[tuple[Path, Kind]] = [(cache_of(output), "stages")] if is_cache(cache_of(output)) else []
    kept += [(path, "unfinished") for path in [beside(output, "hardening")] if (path / "rounds.jsonl").is_file()]
    sizes = {path: _size_bytes(path) for path in (*temporary, *(path for path, _ in kept))}
    if not sizes:
        return
    note = ""
    if temporary or everything:
        try:
            with lock(output):  # which removes what is temporary
                for path, _ in kept if everything else ():
                    discard(path)
        except InputError as error:
            note = str(error)
    kinds: dict[Path, Kind] = {**dict.fromkeys(temporary, "leftover"), **dict(kept)}
    for path, kind in kinds.items():
        yield Found(path=str(path), kind=kind, size_bytes=sizes[path], removed=not path.exists(), note=note if path.exists() else "")


def _of_user(everything: bool) -> Iterator[Found]:
    try:
        root = user_cache("")
    except InputError:  # a user without a home has no caches
        return
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        size = _size_bytes(path)
        if everything:
            remove(path)
        yield Found(path=str(path), kind="cache", size_bytes=size, removed=not path.exists())


def _size_bytes(path: Path) -> int:
    total = 0
    for each in (path, *path.rglob("*")):
        with suppress(FileNotFoundError):  # a command that runs has finished with it meanwhile
            total += each.lstat().st_size if each.is_file() else 0
    return total
