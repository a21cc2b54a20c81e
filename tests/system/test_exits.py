"""Every way a command can end has its line and its exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys

import pytest
import typer

from nemo_edge.system.errors import BundleError, ExportError, InputError, MissingDependency
from nemo_edge.system.exits import INTERRUPTED, check_terminated, exit_code, stop_on_sigterm


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


def test_a_second_sigterm_does_not_stop_the_cleaning_up() -> None:
    cleaned = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned.append(True)

    former = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm()
    try:
        with pytest.raises(BaseException, match=r"^$") as stopped:
            work()
    finally:
        signal.signal(signal.SIGTERM, former)
    assert (exit_code(stopped.value), cleaned) == (143, [True])


def test_a_sigterm_that_a_library_swallows_is_raised_again(monkeypatch: pytest.MonkeyPatch) -> None:
    swallowed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda told: swallowed.append(told.exc_value))

    class Library:
        def __del__(self) -> None:  # Python tells of what is raised here, and goes on
            os.kill(os.getpid(), signal.SIGTERM)

    former = signal.getsignal(signal.SIGTERM)
    stop_on_sigterm()
    try:
        check_terminated()
        Library()
        assert len(swallowed) == 1
        with pytest.raises(type(swallowed[0])) as stopped:
            check_terminated()
        assert exit_code(stopped.value) == 143
    finally:
        stop_on_sigterm()  # forgets it
        signal.signal(signal.SIGTERM, former)
    check_terminated()
