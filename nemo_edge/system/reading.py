"""Files that somebody else wrote: the one place that reads them, so that whatever is in them ends in a line that says so.

A file is a regular one (a pipe would wait for ever, a device never end) and no larger than what it is for. Knows bytes, text and JSON,
nothing of what they mean.
"""

from __future__ import annotations

__all__ = ["MOST_BYTES", "check_letters", "check_regular", "expanded", "parse_json", "read_bytes", "read_json", "read_text", "why_unread"]

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

from nemo_edge.system.errors import InputError

MOST_BYTES = 64 * 2**20
"""What a file of settings, of a configuration or of results may have, unless its reader says otherwise."""

_WHY = {
    errno.ENAMETOOLONG: "its name is too long: give another path",
    errno.ELOOP: "it is a link that leads to itself: give the file",
    errno.EACCES: "permission is denied: change its permissions, or give another path",
    errno.EPERM: "permission is denied: change its permissions, or give another path",
    errno.EISDIR: "it is a folder: give a file",
    errno.ENOTDIR: "a part of its path is a file: give another path",
    errno.ENXIO: "it is no regular file: give one",
}


def read_bytes(path: Path, what: str = "", *, most: int = MOST_BYTES, remedy: str = "give the path of one that is there") -> bytes:
    """Return what is in a regular file of at most so many bytes; a message calls it `what`, and ends in the `remedy` where it is missing.

    Raises `InputError` for anything else, without waiting.
    """
    name = _named(path, what)
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        with open(descriptor, "rb") as file:  # noqa: PTH123  a descriptor
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise InputError(f"{name} cannot be read: {_kind(found.st_mode)}")
            if found.st_size > most:
                raise InputError(f"{name} has {found.st_size / 2**20:,.0f} MB, more than {most / 2**20:,.0f}: give a smaller one")
            return file.read(found.st_size)
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist: {remedy}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read: {why_unread(error)}") from error


def read_text(path: Path, what: str = "", *, most: int = MOST_BYTES, remedy: str = "give the path of one that is there") -> str:
    """Return the text in a file, UTF-8 with or without a mark. Raises `InputError` as `read_bytes`, and for what is no text."""
    data = read_bytes(path, what, most=most, remedy=remedy)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{_named(path, what)} is not UTF-8 (line {line}): convert it, e.g. iconv -t UTF-8") from error


def read_json(path: Path, what: str = "", *, most: int = MOST_BYTES, remedy: str = "give the path of one that is there") -> Any:
    """Return the value that is in a JSON file. Raises `InputError` as `read_text`, and for what is no JSON that can be read."""
    text = read_text(path, what, most=most, remedy=remedy)
    try:
        return parse_json(text)
    except ValueError as error:
        raise InputError(f"{_named(path, what)} cannot be read as JSON ({error}): get or make it again") from error


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Return the value of a JSON text, which `json.loads` reads with these options.

    Raises `ValueError` alone, for nesting that is too deep too, and for half of a letter, which no text may hold.
    """
    try:
        found = json.loads(text, **options)
        if "\\u" in (text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass")):
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError(f"it has half of a letter ({error.object[error.start]!a}, a lone surrogate)") from error
    return found


def check_letters(text: str, what: str) -> None:
    """Raise `InputError` for a text with half of a letter in it, as a terminal or another program gives what is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{what} has half of a letter ({text[error.start]!a}): give it as UTF-8") from error


def check_regular(path: Path, what: str = "", *, remedy: str = "give the path of one that is there") -> None:
    """Raise `InputError` unless a regular file is there that another library is to open."""
    try:
        mode = path.stat().st_mode
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except FileNotFoundError as error:
        raise InputError(f"{_named(path, what)} does not exist: {remedy}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{_named(path, what)} cannot be read: {why_unread(error)}") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{_named(path, what)} cannot be read: {_kind(mode)}")


def expanded(path: str | Path) -> Path:
    """Return a path with `~` as the home folder it stands for. Raises `InputError` for a user that is not known here."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path} begins with the home folder of a user that is not known here: write the path out") from error


def why_unread(error: OSError | ValueError) -> str:
    """Return why a file cannot be read, and what helps."""
    if isinstance(error, OSError):
        return _WHY.get(error.errno or 0, f"{(error.strerror or str(error)).lower()}: give another file")
    return "its path holds a zero byte: give another path" if "null" in str(error) else f"{error}: give another file"


def _named(path: Path, what: str) -> str:
    """Return what a message calls a file."""
    return f"{what} {path}" if what else str(path)


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return _WHY[errno.EISDIR]
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
    return f"it is {next((word for is_it, word in kinds if is_it(mode)), 'no regular file')}: give a regular file, or write it to one"
