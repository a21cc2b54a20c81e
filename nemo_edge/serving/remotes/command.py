"""A pipeline behind a command line: a program that is given a prompt, a seed and a file, and writes a picture there.

The command is split as a shell would, and run without one: a prompt is untrusted text and stays the one argument that it is put into,
which must be none that a shell or an interpreter takes for code.
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
from nemo_edge.system.files import PICKLE_FILES, WEIGHT_FILES, checkpoint_hashes, sha256_file, sha256_json

_EXAMPLE = "--command 'mydraw --prompt={prompt} --seed {seed} --out {output}'"
_PLACES = re.compile(r"\{(prompt|seed|output)\}")
_NEEDED = ("prompt", "output")
_INTERPRETER = re.compile(r"((ba|da|a|k|mk|z|fi|c|tc)?sh|su|runuser|python|pypy|perl|ruby|node|nodejs|php|lua|Rscript|pwsh)[\d.]*(\.exe)?")
"""Programs that run an argument as code."""
_CODE = re.compile(r"-[A-Za-z]*[ceErp]|-C(ommand)?|--(command|eval|print)")
"""Options that say so of the next."""
_ELSEWHERE = re.compile(r"(ssh|rsh)(\.exe)?")
"""Programs that have a shell far away read all their arguments."""
_LAST_BYTES = 4096
"""Of what a command says on standard error."""


class CommandPipeline:
    """Runs a command for each picture; `{prompt}` and `{output}` stand in it, and `{seed}` where it takes one."""

    def __init__(self, command: str, timeout_s: float) -> None:
        """Raises `InputError` for a command that cannot be split, lacks a place, has one within code, or is not there."""
        self._arguments, self._timeout_s = _split(command), timeout_s
        options = self._arguments[: self._arguments.index("--")] if "--" in self._arguments else self._arguments
        self._bare = any(argument.startswith("{prompt}") for argument in options)
        program = shutil.which(self._arguments[0])
        if program is None:
            raise InputError(f"the command {self._arguments[0]} does not exist, or may not be run: give the path of a program")
        self._folder = tempfile.TemporaryDirectory(prefix="nemo-edge-command-")
        digests = {argument: digest for argument in self._arguments[1:] if (digest := _digest(argument))}
        self.identity = Identity(kind="command", address=command, version=sha256_file(Path(program)), told=digests)

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
    for place, program in enumerate(map(_name, arguments)):
        code = _code(program, arguments[place + 1 :])
        if code:
            raise InputError(
                f"--command puts {code} into code that {program} runs, so that a prompt could run anything: call the program that draws "
                f'itself ({_EXAMPLE}), or have the code take its arguments, as in sh -c \'mydraw "$1" > "$2"\' sh {{prompt}} {{output}}'
            )
    return arguments


def _code(program: str, arguments: Sequence[str]) -> str | None:
    """The place of what is put in that stands within code which a program reads from its arguments; None where there is none."""
    if _ELSEWHERE.fullmatch(program):
        return _place(" ".join(arguments))
    if not _INTERPRETER.fullmatch(program):
        return None
    code = ran = False
    for argument in arguments:
        if ran and not code and not _CODE.fullmatch(argument):
            return None  # an argument of the code, as are those that follow
        if _place(argument) and (code or argument.startswith("-")):  # the next, or all in one, as -c'…'
            return _place(argument)
        if argument in ("-m", "--") or (not code and _is_file(argument)):
            return None  # what follows is a program's own
        ran = ran or (code and not argument.startswith("-"))
        code = bool(_CODE.fullmatch(argument)) or (code and argument.startswith("-"))
    return None


def _place(argument: str) -> str | None:
    found = _PLACES.search(argument.replace("{seed}", ""))
    return found[0] if found else None


def _is_file(argument: str) -> bool:
    with suppress(OSError, ValueError):  # a name that no file can have
        return Path(argument).is_file()
    return False


def _name(argument: str) -> str:
    return Path(argument).name


def _digest(argument: str) -> str | None:
    """Of an argument that is a file, of `--option=FILE` with weights, and of either with a bundle or a checkpoint; None of others.

    Other files that an option names so may be what the program writes, as a log is.
    """
    option, _, value = argument.rpartition("=")
    path = Path(value if option else argument)
    with suppress(OSError, ValueError):
        if path.is_file():
            return sha256_file(path) if not option or path.suffix in (*WEIGHT_FILES, *PICKLE_FILES) else None
        if (path / "manifest.json").is_file():
            return sha256_file(path / "manifest.json")
        if (path / "model_index.json").is_file():
            return sha256_json(checkpoint_hashes(str(path)))
    return None


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
