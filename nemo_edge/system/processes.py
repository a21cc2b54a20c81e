"""Runs a function in a process of its own, whose memory is given back whole when it is done.

Python and its allocators keep what they once took; a build of large models goes through several peaks that must not add up.
The function is named and not given, so that the process that asks need not hold the libraries that it needs.
"""

from __future__ import annotations

__all__ = ["beside", "rest", "run", "run_in_process", "why_ended"]

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from typing import Any

from nemo_edge.system.errors import InputError, NemoEdgeError
from nemo_edge.system.exits import stop_on_sigterm
from nemo_edge.system.progress import Advance, Progress

_PATIENCE_S = 10.0
_LIBRARIES = "nemo_edge.export.preload"
"""What most functions need; imported once, for all processes, where the system can fork."""


def run(separate: bool, what: str, progress: Progress, function: str, *arguments: Any) -> Any:
    """Call `function` here, or in a `separate` process."""
    return run_in_process(what, progress, function, *arguments) if separate else _resolve(function)(*arguments, progress)


def run_in_process(what: str, progress: Progress, function: str, *arguments: Any) -> Any:
    """Return `function(*arguments, progress)`, called in a fresh process; its progress is told to `progress` here.

    `function` is "module.name"; arguments, result and errors go through pickle. Raises what the function raises, and
    `InputError` when the process was killed while it was to do `what`, as Linux does for want of memory.
    """
    with _started(what, progress, function, *arguments) as answer:
        return answer()


@contextmanager
def beside(separate: bool, what: str, progress: Progress, function: str, *arguments: Any) -> Iterator[Callable[[], Any]]:
    """Within the context `function` runs in a `separate` process, beside what goes on here; yields the function that waits for its result.

    It leaves a core to what goes on here, and is ended at once where the context is left without having waited. Without one it
    runs when its result is asked for.
    """
    if separate:
        with _started(what, progress, function, *arguments, aside=True) as answer:
            yield answer
    else:
        yield lambda: _resolve(function)(*arguments, progress)


@contextmanager
def _started(what: str, progress: Progress, function: str, *arguments: Any, aside: bool = False) -> Iterator[Callable[[], Any]]:
    """A process that works on `function`; yields what waits for it. Leaving the context ends the process."""
    context = _context()
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, function, arguments, aside), daemon=False)

    def answer() -> Any:
        try:
            done, value = _answer(here, progress)
        except EOFError as error:
            process.join()
            remedy = "is there enough memory? `nemo-edge doctor --model` estimates it"
            raise why_ended(process.exitcode, what, remedy) from error
        process.join(_PATIENCE_S)
        if not done:
            raise value
        return value

    try:
        process.start()
        there.close()
        yield answer
    finally:
        here.close()
        if process.pid is not None and process.exitcode is None:
            process.terminate()
            process.join(_PATIENCE_S)
            process.kill()  # it was busy inside of a library
            process.join()


def why_ended(exit_code: int | None, what: str, remedy: str) -> InputError:
    """Return what to say of a process that was to do `what` and ended without an answer; `remedy` is for one that was killed."""
    if exit_code == 1:  # a signal's is negative: it could not import the program that runs here
        return InputError(
            f"the process that was to {what} could not begin: a script that calls nemo-edge does so below "
            "`if __name__ == '__main__':`, since every process imports it"
        )
    return InputError(f"the process that was to {what} was killed (exit code {exit_code}): {remedy}")


def rest() -> None:
    """Give back the memory of the libraries that wait for the next process, which has to import them again."""
    from multiprocessing import forkserver

    stop = getattr(forkserver._forkserver, "_stop", None)  # there is no public name for it
    if stop is not None:
        stop()


def _context() -> Any:
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([_LIBRARIES])
    from multiprocessing import forkserver, resource_tracker

    resource_tracker.ensure_running()  # which the server starts too, and then lets the signal through
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # its processes inherit this: Ctrl-C is for the parent
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)
    return context


def _resolve(function: str) -> Callable[..., Any]:
    module, _, name = function.rpartition(".")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _answer(pipe: Any, progress: Progress) -> tuple[bool, Any]:
    """Pass on what the process tells until it is done."""
    with ExitStack() as tasks:
        advances: list[Advance] = []
        while True:
            kind, value = pipe.recv()
            if kind == "task":
                advances.append(tasks.enter_context(progress.task(*value)))
            elif kind == "advance":
                advances[-1](value)
            elif kind == "phase":
                progress.phase(value)
            elif kind == "end":
                advances.clear()
                tasks.close()
            elif kind == "note":
                progress.note(value)
            elif kind != "started":
                return kind == "done", value


class _Told(Progress):
    """Sends progress through a pipe."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self._pipe.send(("task", (description, total)))
        try:
            yield lambda done: self._pipe.send(("advance", done))
        finally:
            self._pipe.send(("end", None))

    def phase(self, name: str) -> None:
        self._pipe.send(("phase", name))

    def note(self, message: str) -> None:
        self._pipe.send(("note", message))


def _serve(pipe: Any, function: str, arguments: tuple[Any, ...], aside: bool) -> None:
    """The life of the process. It ends on SIGTERM, which its parent sends when it is interrupted, and leaves no temporary files."""
    if aside and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[1:] or cores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stop_on_sigterm()
    try:
        pipe.send(("started", None))
    except OSError:  # the parent was interrupted meanwhile
        return
    try:
        answer = ("done", _resolve(function)(*arguments, _Told(pipe)))
    except NemoEdgeError as error:
        answer = ("failed", error)
    except Exception as error:  # noqa: BLE001  it is raised again in the parent
        answer = ("failed", RuntimeError(f"{type(error).__name__}: {error}"))
    except BaseException:  # noqa: BLE001  terminated: nobody listens
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pipe.send(answer)
