"""Commands that are killed: at every rename, link and removal of a folder, each time in a process of its own.

The processes are forked from a server that has imported the libraries and has run nothing of them, so that a kill costs little.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from nemo_edge.system import outputs
from nemo_edge.system.files import sha256_file
from nemo_edge.system.processes import rest

_ONE_AT_A_TIME = threading.Lock()
"""Starting a process looks after all others, and two threads that do so take the end of one for that of the other."""

Call = Callable[[Path], object]
"""A command that works in a folder."""


@contextmanager
def server(*modules: str) -> Iterator[None]:
    """Have what `reached` starts forked from a process that has imported `modules`."""
    rest()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nemo_edge.export.preload", *modules])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # it is told of no other path before Python 3.13
        forkserver.ensure_running()
    yield
    rest()


def reached(call: Call, folder: Path, log: Path, kill_at: int = 0) -> list[str]:
    """Run a command in a process of its own, which kills itself right before its point `kill_at`; return the points that it reached.

    A process that ended otherwise than it should is an error.
    """
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_run, args=(call, folder, log, kill_at))
    with _ONE_AT_A_TIME:
        process.start()
    wait([process.sentinel])
    with _ONE_AT_A_TIME:
        process.join()
    expected = -signal.SIGKILL if kill_at else 0
    assert process.exitcode == expected, f"{call} ended with {process.exitcode}, not {expected}, at point {kill_at}"
    return log.read_text().splitlines()


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder below `folder`, hidden ones too: sha256 of a file, nothing of a folder."""
    return {p.relative_to(folder).as_posix(): sha256_file(p) if p.is_file() else "" for p in sorted(folder.rglob("*"))}


def unexchanged(call: Call, folder: Path) -> None:
    """Run a command as where two folders cannot be exchanged: on NFS, say, or on an overlay."""
    outputs._exchange = lambda one, other: False
    call(folder)


def _run(call: Call, folder: Path, log: Path, kill_at: int) -> None:
    points = _Points(log, kill_at)
    points.watch()
    call(folder)


class _Points:
    """Counts what a process does to names of files, and kills it in time."""

    def __init__(self, log: Path, kill_at: int) -> None:
        self._log, self._kill_at, self._names = log, kill_at, list[str]()
        log.write_text("")

    def watch(self) -> None:
        """Put a point before everything that gives a name or takes a folder away, and one in the midst of taking it away."""
        for name in ("replace", "rename", "link"):
            setattr(os, name, self._before(name, getattr(os, name)))
        if outputs._exchange.__module__ == outputs.__name__:
            outputs._exchange = self._before("exchange", outputs._exchange)
        shutil.rmtree = self._before("rmtree", self._halved(shutil.rmtree))  # type: ignore[assignment]

    def _reach(self, name: str, place: object) -> None:
        self._names.append(f"{name} {place}")
        self._log.write_text("\n".join(self._names))
        if len(self._names) == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def _before(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self._reach(name, arguments[0])
            return call(*arguments, **options)

        return counted

    def _halved(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def removed(place: str | os.PathLike[str], *arguments: Any, **options: Any) -> Any:
            files = [path for path in sorted(Path(place).rglob("*")) if path.is_file()]
            for path in files[: len(files) // 2]:
                path.unlink()
            if files:
                self._reach("midway", place)
            return call(place, *arguments, **options)

        return removed
