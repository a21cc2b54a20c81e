"""How a command ends: one line on standard error for whatever went wrong, and the exit code of DESIGN.

0 done · 1 a defect of ours · 2 wrong usage or input · 3 a gate failed · 4 a dependency is missing · 130 and 143 interrupted.
"""

from __future__ import annotations

__all__ = ["INTERRUPTED", "check_terminated", "exit_code", "stop_on_sigterm"]

import errno
import signal
import sys
import threading
from pathlib import Path

import typer

from nemo_edge.system.terminal import visible

INTERRUPTED = 130

_TERMINATED = 143
_asked = threading.Event()
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_OF_A_PATH = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)
"""Of a file that is read or written where nothing says which."""


def exit_code(error: BaseException) -> int:
    """Say what happened in one line on standard error; return the exit code."""
    from nemo_edge.system.errors import InputError, MissingDependency, NemoEdgeError, lacking
    from nemo_edge.system.files import explain
    from nemo_edge.system.reading import why_unread

    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _say("interrupted; the same command goes on from what was finished", INTERRUPTED)
    if isinstance(error, _Terminated):
        return _say("terminated; the same command goes on from what was finished", _TERMINATED)
    usage = getattr(error, "format_message", None)
    if usage is not None:  # typer's own complaint about an option or an argument
        return _say(f"{usage()} (see --help)", 2)
    if isinstance(error, SystemExit):
        return int(error.code or 0)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return _say(str(explain(error, Path(error.filename or "the output"))), 2)
    if isinstance(error, OSError) and error.errno in _OF_A_PATH:
        return _say(f"{error.filename or 'a path'} cannot be used: {why_unread(error)}", 2)
    if isinstance(error, ModuleNotFoundError):
        error = lacking(error) or error
    codes: tuple[tuple[type[BaseException], int], ...] = ((InputError, 2), (MissingDependency, 4))
    code = next((code for kind, code in codes if isinstance(error, kind)), 1)
    if code == 1 and not isinstance(error, NemoEdgeError):
        return _say(f"a defect of nemo-edge: {type(error).__name__}: {error} (run again with --debug for the traceback)", 1)
    return _say(str(error), code)


def stop_on_sigterm() -> None:
    """Turn SIGTERM into an exception, so that contexts are left and temporary files removed."""
    _asked.clear()
    signal.signal(signal.SIGTERM, _terminated)


def check_terminated() -> None:
    """Raise that exception once more where a library has swallowed it: one that is raised in a destructor, say, goes no further."""
    if _asked.is_set():
        raise _Terminated


def _say(message: str, code: int) -> int:
    print(visible(f"nemo-edge: {' '.join(message.split())}"), file=sys.stderr)
    return code


class _Terminated(BaseException):
    """SIGTERM, as an exception."""


def _terminated(_signal: int, _frame: object) -> None:
    _asked.set()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would stop the removal of temporary files
    raise _Terminated
