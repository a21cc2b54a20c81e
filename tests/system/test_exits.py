"""Every way a command can end has its line and its exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import typer

from nemo_edge.system.errors import BundleError, ExportError, InputError, MissingDependency
from nemo_edge.system.exits import INTERRUPTED, exit_code


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("no such file: give another"), 2, "nemo-edge: no such file: give another\n"),
        (BundleError("not a bundle"), 2, "nemo-edge: not a bundle\n"),
        (MissingDependency("no GPU"), 4, "nemo-edge: no GPU\n"),
        (ExportError("does not agree"), 1, "nemo-edge: does not agree\n"),
        (typer.BadParameter("--size foo"), 2, "nemo-edge: Invalid value: --size foo (see --help)\n"),
        (SystemExit(3), 3, ""),
    ],
)
def test_an_error_is_one_line_and_a_code(error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(error) == code
    assert capsys.readouterr() == ("", line)


def test_a_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]) -> None:
    exit_code(InputError("a\n  b\nc"))
    assert capsys.readouterr().err == "nemo-edge: a b c\n"


def test_an_error_nobody_meant_is_called_a_defect(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(ZeroDivisionError("division by zero")) == 1
    assert "a defect of nemo-edge: ZeroDivisionError: division by zero" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 2), (errno.EACCES, 2), (errno.EIO, 1)])
def test_the_disk_is_no_defect_of_ours(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(OSError(number, os.strerror(number), "found.jsonl")) == code
    assert ("found.jsonl" in capsys.readouterr().err) or code == 1


def test_an_interruption_says_that_the_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(KeyboardInterrupt()) == INTERRUPTED
    assert "goes on from what was finished" in capsys.readouterr().err


SECOND = """
import os, signal
from nemo_edge.system.exits import exit_code, stop_on_sigterm
stop_on_sigterm()
try:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("cleaned")
except BaseException as error:
    raise SystemExit(exit_code(error))
"""
SWALLOWED = """
import os, signal, sys
from nemo_edge.system.exits import check_terminated, exit_code, stop_on_sigterm
sys.unraisablehook = lambda told: print("swallowed")
class Library:
    def __del__(self):  # Python tells of what is raised here, and goes on
        os.kill(os.getpid(), signal.SIGTERM)
stop_on_sigterm()
check_terminated()
Library()
try:
    check_terminated()
except BaseException as error:
    stop_on_sigterm()  # forgets it
    check_terminated()
    raise SystemExit(exit_code(error))
"""


@pytest.mark.parametrize(("script", "said"), [(SECOND, "cleaned\n"), (SWALLOWED, "swallowed\n")], ids=["a second one", "one swallowed"])
def test_a_sigterm_stops_once_and_for_sure(script: str, said: str) -> None:
    """In a process of its own: other libraries of the tests' take signals, too. A second one does not stop the cleaning up, and one
    that a library swallows is raised again."""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (143, said), found.stderr
    assert "goes on from what was finished" in found.stderr
