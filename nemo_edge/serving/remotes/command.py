"""A pipeline behind a command line: a program that is given a prompt, a seed and a file, and writes a picture there.

The command is split as a shell would, and run without one: a prompt is untrusted text and stays the one argument that it is put into.
"""

from __future__ import annotations

__all__ = ["CommandPipeline"]

import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from nemo_edge.serving.remotes.base import LARGEST_BYTES, Identity, Refusal, decode_picture
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file

_EXAMPLE = "--command 'mydraw --prompt={prompt} --seed {seed} --out {output}'"
_PLACES = re.compile(r"\{(prompt|seed|output)\}")
_NEEDED = ("prompt", "output")
_LAST_BYTES = 4096
"""Of what a command says on standard error."""


class CommandPipeline:
    """Runs a command for each picture; `{prompt}` and `{output}` stand in it, and `{seed}` where it takes one."""

    def __init__(self, command: str, timeout_s: float) -> None:
        """Raises `InputError` for a command that cannot be split, lacks a place, or is not there."""
        self._arguments, self._timeout_s = _split(command), timeout_s
        self._bare = "{prompt}" in self._arguments and "--" not in self._arguments[: self._arguments.index("{prompt}")]
        program = shutil.which(self._arguments[0])
        if program is None:
            raise InputError(f"the command {self._arguments[0]} does not exist, or may not be run: give the path of a program")
        self._folder = tempfile.TemporaryDirectory(prefix="nemo-edge-command-")
        self.identity = Identity(kind="command", address=command, version=sha256_file(Path(program)))

    def __call__(self, prompt: str, seed: int) -> np.ndarray:
        """Return a picture."""
        output, said = Path(self._folder.name) / "picture.png", Path(self._folder.name) / "said"
        output.unlink(missing_ok=True)
        if prompt.startswith("-") and self._bare:
            raise Refusal("a prompt that begins with - would be read as an option: write --option={prompt} in the command, or -- before it")
        values = {"prompt": prompt, "seed": str(seed), "output": str(output)}
        arguments = [_PLACES.sub(lambda found: values[found[1]], argument) for argument in self._arguments]
        with said.open("wb") as file:
            code = self._run(arguments, file)
        name = arguments[0]
        if code != 0:
            raise InputError(f"the command {name} failed (exit code {code}){_last_line(said)}: it must draw a picture of {prompt!r}")
        if not output.is_file():
            raise InputError(f"the command {name} wrote no picture{_last_line(said)}: it must write one to the file in place of {{output}}")
        with output.open("rb") as picture:
            return decode_picture(picture.read(LARGEST_BYTES), f"what the command {name} wrote")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def _run(self, arguments: Sequence[str], said: IO[bytes]) -> int:
        """Its exit code. Where it takes too long, or this process is interrupted, it is ended with all that it started."""
        try:
            process = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True)
        except (OSError, ValueError) as error:  # too long an argument, a character that none may have
            raise InputError(f"the command {arguments[0]} cannot be run: {error}") from error
        try:
            return process.wait(self._timeout_s)
        except subprocess.TimeoutExpired as error:
            raise InputError(
                f"the command {arguments[0]} drew nothing in {self._timeout_s:g} s: give it longer with --timeout, or see why it waits"
            ) from error
        finally:
            if process.poll() is None:
                _end(process)


def _split(command: str) -> list[str]:
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise InputError(f"--command {command}: {error}; write it as in a shell, {_EXAMPLE}") from error
    lacking = [name for name in _NEEDED if not any(f"{{{name}}}" in argument for argument in arguments[1:])]
    if lacking:
        raise InputError(f"--command has no {{{lacking[0]}}} among its arguments: write it like {_EXAMPLE}")
    return arguments


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _last_line(said: Path) -> str:
    """What a command said last."""
    lines = said.read_bytes()[-_LAST_BYTES:].decode(errors="replace").splitlines()
    found = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
    return f", and says: {found}" if found else ""
