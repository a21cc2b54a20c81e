"""Outputs that one command at a time writes to: where their files lie before they have their names, the lock, and what killed runs left.

Beside an output `name` lie `.name.lock` while a command writes to it, `.name.<8 digits>.part` what is not whole yet, and `.name.former`
what was moved out of its place to be replaced. All three are gone when a command is done, and the next one clears up after one that was
killed.
Knows files and processes, nothing of what is in them.
"""

from __future__ import annotations

__all__ = ["beside", "discard", "former_of", "lock", "put_back", "put_in_place", "remove", "unfinished"]

import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from nemo_edge.system.errors import InputError
from nemo_edge.system.files import explain, followed, leftovers, temporary

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.part")
_PATIENCE_S = 5.0
"""How long what only reads waits for a command that is about to put an output into its place."""
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_held: ContextVar[frozenset[Path]] = ContextVar("_held", default=frozenset())
"""The locks that this thread of work holds."""


def beside(place: Path, ending: str) -> Path:
    """The hidden path `.name.ending` beside an output, or beside what it is a link to."""
    place = followed(place)
    return place.with_name(f".{place.name}.{ending}")


def former_of(place: Path) -> Path:
    """Where an output is kept while another takes its place, on a file system that cannot exchange the two."""
    return beside(place, "former")


def unfinished(folder: Path) -> list[Path]:
    """What lies anywhere in a folder under a temporary name: of a run that was killed, for whoever alone writes into the folder."""
    return sorted(path for path in folder.rglob(".*.part") if _TEMPORARY.fullmatch(path.name))


def remove(path: Path) -> None:
    """Remove a file or a folder as far as it can be removed; a link and not what it leads to."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def discard(folder: Path) -> None:
    """Remove a folder that nobody may take for a whole one when a part of it is gone."""
    staged = temporary(folder)
    os.replace(folder, staged)
    remove(staged)


@contextmanager
def lock(place: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold an output until the context is left, after removing what killed runs have left beside it; within itself it does nothing.

    Raises `InputError` while another command holds it, after `wait_s` seconds, and where no file can be made beside it.
    """
    path = beside(place, "lock").absolute()
    if path in _held.get():
        yield
        return
    held = _acquired(path, place, wait_s)
    token = _held.set(_held.get() | {path})
    try:
        _clear(place)
        yield
    finally:
        _held.reset(token)
        with suppress(OSError):  # while it is held: who has opened it meanwhile finds that it has no name any more
            path.unlink()
        held.release()


def put_back(place: Path) -> None:
    """Put an output that a killed command moved aside back into its place; nothing where there is none, or the output is there."""
    if not place.exists() and former_of(place).exists():
        with suppress(InputError), lock(place, _PATIENCE_S):
            pass


def put_in_place(staged: Path, folder: Path) -> None:
    """Give a folder that is whole the name of an output, whose former folder goes: where the two can be exchanged, in one step.

    Where they cannot, the former one is aside for a moment; `put_back` and `lock` look for it there after a kill.
    """
    folder = followed(folder)
    try:
        if not folder.is_dir():
            os.replace(staged, folder)
        elif not _exchange(staged, folder):  # else the former one is where the staged one was, and goes with it
            _replace(staged, folder)
    except OSError as error:
        raise explain(error, folder) from error


def _replace(staged: Path, folder: Path) -> None:
    """Put a folder in the place of another in two steps; an error takes the first one back, `lock` does after a kill."""
    former = former_of(folder)
    try:
        os.replace(folder, former)
        os.replace(staged, folder)
    finally:
        if not folder.exists():
            os.replace(former, folder)
    shutil.rmtree(former, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Give two folders each other's name in one step, so that there is no moment without a bundle; False where nobody can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, TypeError, AttributeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _acquired(path: Path, place: Path, wait_s: float) -> FileLock:
    try:
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(path)
            held.acquire(timeout=wait_s)
            if _has_its_name(held, path):
                return held
            held.release()
    except Timeout as error:
        raise InputError(f"another command is writing to {place}: wait for it, or give another output") from error
    except OSError as error:
        raise explain(error, place) from error


def _has_its_name(held: FileLock, path: Path) -> bool:
    """Whether the file that is locked is still the one of that name: its former holder has removed it."""
    descriptor = held._context.lock_file_fd  # there is no public name for it
    try:
        return descriptor is None or os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _clear(place: Path) -> None:
    """Finish what a killed command began to put into place: what was there before is there again, and nothing else is left."""
    former = former_of(place)
    if former.exists() and not place.exists():
        try:
            os.replace(former, followed(place))
        except OSError as error:
            raise explain(error, place) from error
    for path in (former, *leftovers(place)):
        remove(path)
