"""Rows of a file of prompts, whatever its form: text, CSV, TSV, JSON, JSON lines; every row with its place.

Knows bytes, lines and columns; nothing of prompts. Strict: what does not fit its header is refused, never guessed.
"""

from __future__ import annotations

__all__ = ["ENDINGS", "MAX_SIZE_BYTES", "Row", "read_rows"]

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any

from nemo_edge.system.errors import InputError
from nemo_edge.system.reading import parse_json, read_bytes

MAX_SIZE_BYTES = 64 * 2**20
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # it begins as that of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NAMES = {"utf-8": "UTF-8", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16", "utf-32-le": "UTF-32", "utf-32-be": "UTF-32"}
_DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;"}
"""By ending, the likeliest first: it is taken where a header has one column alone."""
_LATIN = 0.4
"""Share of zero bytes at every other place from which a file without a mark is taken for UTF-16."""


@dataclass(frozen=True)
class Row:
    """One row: `place` is where it stands ("line 3"), `values` its columns, empty for a row without anything."""

    place: str
    values: dict[str, Any]
    lines: int = 1
    """Lines of the file that it takes."""


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a file by its ending, `ENDINGS`; in text each line is a row with the column `prompt`.

    Raises `InputError` for a file that is missing, a folder, too large, binary, in no encoding of Unicode or of another ending, and
    with its line for a row that does not fit its header, an open quote, and what is not JSON.
    """
    reader = _READERS.get(path.suffix.lower())
    data = read_bytes(
        path, "prompts file", most=MAX_SIZE_BYTES, remedy=f"give one of {', '.join(ENDINGS)}; docs/prompts.md says where lists come from"
    )
    if reader is None:
        ending = f"the ending {path.suffix}" if path.suffix else "no ending"
        raise InputError(f"prompts file {path} has {ending}: give one of {', '.join(ENDINGS)}")
    text = _decoded(data, path).replace("\r\n", "\n").replace("\r", "\n")
    rows = list(reader(text, path))
    return list(dropwhile(lambda row: not row.values, reversed(rows)))[::-1]


def _decoded(data: bytes, path: Path) -> str:
    mark, encoding = next((found for found in _BOMS if data.startswith(found[0])), (b"", _unmarked(data)))
    data = data[len(mark) :]
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, errors="ignore").replace("\r\n", "\n").replace("\r", "\n")
        line, remedy = before.count("\n") + 1, "convert it, e.g. iconv -t UTF-8"
        raise InputError(f"prompts file {path} is not {_NAMES[encoding]} (line {line}): {remedy}") from error
    if "\0" in text:
        raise InputError(f"prompts file {path} is binary: give a text file ({', '.join(ENDINGS)})")
    return text


def _unmarked(data: bytes) -> str:
    """The encoding of a file without a mark: UTF-16 where every other byte of mostly Latin letters is zero, else UTF-8."""
    if len(data) % 2 == 0:
        for encoding, high, low in (("utf-16-le", data[1::2], data[::2]), ("utf-16-be", data[::2], data[1::2])):
            if high.count(0) > _LATIN * len(high) and not low.count(0):
                return encoding
    return "utf-8"


def _rows_of_text(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        yield Row(f"line {number}", {"prompt": line.strip()} if line.strip() else {})


def _rows_of_csv(text: str, path: Path) -> Iterator[Row]:
    records = _records(text, path, _delimiter(text, path))
    start, first, _ = next((record for record in records if any(map(str.strip, record[1]))), (1, [], 1))
    header = [name.strip() for name in first]
    twice = next((name for name in header if name and header.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"prompts file {path} has the column {twice!r} twice: rename one of them")
    for number, fields, lines in records:
        if fields and len(fields) != len(header):
            raise InputError(
                f"prompts file {path}, line {number} has {_fields(len(fields))}, its header in line {start} {_fields(len(header))}: put "
                "a field that holds a delimiter between quotes, and write a quote within it twice"
            )
        filled = any(map(str.strip, fields))
        yield Row(f"line {number}", {name: value for name, value in zip(header, fields, strict=True) if name} if filled else {}, lines)


def _delimiter(text: str, path: Path) -> str:
    """The delimiter that cuts the header into most columns; of the rows nothing is guessed."""
    line = next((line for line in text.split("\n") if line.strip()), "")
    ways = _DELIMITERS[path.suffix.lower()]
    try:
        return max(ways, key=lambda way: len(next(csv.reader([line], delimiter=way), [])))  # the first of those that are equal
    except csv.Error as error:
        raise InputError(f"prompts file {path} has no header that can be read ({error}): begin it with the names of its columns") from error


def _records(text: str, path: Path, delimiter: str) -> Iterator[tuple[int, list[str], int]]:
    """The line each record begins on, its fields, and how many lines it takes."""
    reader, start = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), 1
    try:
        for fields in reader:
            yield start, fields, reader.line_num - start + 1
            start = reader.line_num + 1
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            why = "opens a quote that is not closed: close it, or write a quote within a field twice"
        elif "expected after" in str(error):
            why = "has letters after a closing quote, or a quote that is not closed before it: write a quote within a field twice"
        else:
            why = f"is not CSV: {error}"
        raise InputError(f"prompts file {path}, the row of line {start} {why}") from error


def _fields(count: int) -> str:
    return f"{count} field{'' if count == 1 else 's'}"


def _rows_of_jsonl(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        place = f"line {number}"
        yield _row_of_json(_parsed(line, path, f", {place}"), path, place) if line.strip() else Row(place, {})


def _rows_of_json(text: str, path: Path) -> Iterator[Row]:
    found = _parsed(text, path) if text.strip() else []
    if not isinstance(found, list):
        raise InputError(f'prompts file {path}: expected an array like ["…"] or [{{"prompt": "…"}}]; one object a line is .jsonl')
    for number, each in enumerate(found, 1):
        yield _row_of_json(each, path, f"entry {number}")


def _row_of_json(value: Any, path: Path, place: str) -> Row:
    if isinstance(value, str):
        return Row(place, {"prompt": value} if value.strip() else {})
    if value is None or (isinstance(value, float) and value != value):  # what pandas writes for no text
        return Row(place, {})
    if not isinstance(value, dict):
        raise InputError(f'prompts file {path}, {place}: expected a text or an object like {{"prompt": "…"}}')
    return Row(place, value)


def _parsed(text: str, path: Path, place: str = "") -> Any:
    try:
        return parse_json(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        hint = "; one object a line is .jsonl" if error.msg == "Extra data" and not place else ""
        raise InputError(f"prompts file {path}{place or f', line {error.lineno}'} is not JSON: {error.msg}{hint}") from error
    except ValueError as error:
        raise InputError(f"prompts file {path}{place} is not JSON that can be read: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of which no key is there twice, which JSON lets pass."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


_READERS: dict[str, Callable[[str, Path], Iterator[Row]]] = {
    ".txt": _rows_of_text,
    ".csv": _rows_of_csv,
    ".tsv": _rows_of_csv,
    ".json": _rows_of_json,
    ".jsonl": _rows_of_jsonl,
}
ENDINGS = tuple(_READERS)
"""The endings of files that are read."""
