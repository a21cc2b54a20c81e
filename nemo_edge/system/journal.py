"""Results that are written one by one as they come, a JSON line each, and taken up after an interruption."""

from __future__ import annotations

__all__ = ["append", "read_lines"]

import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from nemo_edge.system.errors import InputError
from nemo_edge.system.reading import check_regular

_Model = TypeVar("_Model", bound=BaseModel)


def read_lines(kind: type[_Model], path: Path) -> Iterator[_Model]:
    """Yield the results of a file; a last line that was cut off is left out. Raises `InputError` for any other that is not one."""
    check_regular(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield kind.model_validate_json(line)
            except ValidationError as error:
                name = kind.__name__.lower()
                raise InputError(f"{path}, line {number} is not a {name}: delete the file and run again") from error


def append(path: Path, result: BaseModel, leave: Set[str] = frozenset()) -> None:
    """Append one line, without the fields to `leave` out; a line that an interruption cut off is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        _cut(path, file.tell())
        file.write((json.dumps(result.model_dump(mode="json", exclude={*leave})) + "\n").encode())


def _cut(path: Path, size: int) -> None:
    """Remove what stands after the last end of a line."""
    with path.open("r+b") as file:
        if size:
            file.seek(size - 1)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
