"""Lists of prompts: read from text, CSV or JSON lines, with the training picture of each where it is known."""

from __future__ import annotations

__all__ = ["Prompt", "check_apart", "distinct", "read_labelled", "read_prompts"]

import csv
import io
import json
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from nemo_edge.system.errors import InputError

MAX_SIZE_BYTES = 64 * 2**20
COLUMNS = ("Caption", "caption", "prompt", "Prompt", "text")
_NAMED = 3
"""Prompts that a complaint names."""
_LETTERS = 60
"""Letters of a prompt that a complaint shows."""


class Prompt(BaseModel):
    """A prompt; `image` is its training picture (a file), `kind` the label of its memory (VM, TM), where known."""

    model_config = ConfigDict(frozen=True)

    text: str
    image: Path | None = None
    kind: str = ""
    url: str = ""
    cluster: str = ""
    """The cluster it belongs to, where the list says so."""

    @property
    def label(self) -> bool | None:
        """Whether the list says that it is memorized (its type is VM, TM or another) or not (N); None where it says nothing."""
        kind = self.kind.strip().upper()
        return None if not kind else kind != "N"


def read_prompts(path: Path, limit: int | None = None) -> list[Prompt]:
    """Read prompts from `.txt` (one a line), `.csv` (`,` or `;`, column Caption or prompt) or `.jsonl`.

    Images are looked up beside the file. Raises `InputError` when the file is missing, empty, binary, not UTF-8, too
    large, or has no column of prompts.
    """
    text = _read_text(path)
    readers = {".csv": _rows_of_csv, ".jsonl": _rows_of_jsonl}
    rows = readers.get(path.suffix.lower(), _rows_of_text)(text, path)
    prompts = [_prompt(row, path, number) for number, row in enumerate(rows, 1)][:limit]
    if not prompts:
        raise InputError(f"prompts file {path} holds no prompt: write one prompt a line, or a CSV with a column Caption")
    return prompts


def read_labelled(prompts: Path, general: Path | None) -> list[Prompt]:
    """Read prompts, and with `general` prompts that are known not to be memorized: the others then count as memorized.

    A prompt's own label (`kind`) goes before that. Raises `InputError` as `read_prompts` does, and for a prompt that counts as both.
    """
    listed = read_prompts(prompts)
    if general is not None:
        memorized = [p if p.kind else p.model_copy(update={"kind": "VM or TM"}) for p in listed]
        listed = [*memorized, *(p if p.kind else p.model_copy(update={"kind": "N"}) for p in read_prompts(general))]
    check_apart([p for p in listed if p.label is False], [p for p in listed if p.label], general or prompts, prompts)
    return listed


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts, in order, without those that a text encoder reads as one before them: case and white space are the same to it."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(_as_read(prompt.text), prompt)
    return list(found.values())


def check_apart(general: Iterable[Prompt], memorized: Iterable[Prompt], general_path: Path, memorized_path: Path) -> None:
    """Raise `InputError` where a general prompt is a memorized one in any case, spacing and punctuation: τ, and what counts as a
    copy, would be taken from a memory."""
    known = {_words(prompt.text) for prompt in memorized}
    both = [prompt.text for prompt in distinct(general) if _words(prompt.text) in known]
    if both:
        named = ", ".join(repr(text if len(text) <= _LETTERS else f"{text[: _LETTERS - 1]}…") for text in both[:_NAMED])
        more = f" and {len(both) - _NAMED} more" if len(both) > _NAMED else ""
        raise InputError(
            f"{len(both)} of the general prompts in {general_path} stand among the memorized ones of {memorized_path} too ({named}{more}): "
            "a prompt is one or the other, so take each out of one of the lists"
        )


def _words(text: str) -> str:
    """A prompt without its punctuation, which hardly keeps a memory from being asked for; as it is where it has no word."""
    read = _as_read(text)
    return " ".join(re.findall(r"\w+", read)) or read


def _as_read(text: str) -> str:
    """A prompt as CLIP's tokenizers read it: composed letters, no case, one blank for any white space."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise InputError(f"prompts file {path} is a folder: give a .txt, .csv or .jsonl file")
        if size > MAX_SIZE_BYTES:
            raise InputError(f"prompts file {path} has {size / 2**20:.0f} MB, more than {MAX_SIZE_BYTES >> 20}: split it")
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"prompts file {path} does not exist") from error
    except OSError as error:
        raise InputError(f"prompts file {path} cannot be read: {error.strerror}") from error
    if b"\0" in data:
        raise InputError(f"prompts file {path} is binary: give a text file (.txt, .csv or .jsonl)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"prompts file {path} is not UTF-8 (line {line}): convert it, e.g. iconv -t UTF-8") from error


def _rows_of_text(text: str, path: Path) -> Iterable[dict[str, Any]]:
    return [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]


def _rows_of_jsonl(text: str, path: Path) -> Iterable[dict[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"prompts file {path}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise InputError(f'prompts file {path}, line {number}: expected an object like {{"prompt": "…"}}')
        rows.append(row)
    return rows


def _rows_of_csv(text: str, path: Path) -> Iterable[dict[str, Any]]:
    header = text.partition("\n")[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise InputError(f"prompts file {path} is not a CSV file: {error}") from error


def _prompt(row: dict[str, Any], path: Path, number: int) -> Prompt:
    column = next((name for name in COLUMNS if name in row), None)
    if column is None:
        found = ", ".join(repr(name) for name in row if name) or "none"
        raise InputError(f"prompts file {path} has no column of prompts: expected Caption or prompt, found {found}")
    image = row.get("image") or row.get("Image")
    kind = row.get("type") or row.get("kind") or ""
    url, group = row.get("URL") or "", row.get("cluster") or ""
    for name, value in ((column, row[column] or ""), ("image", image or ""), ("type", kind), ("URL", url), ("cluster", group)):
        if not isinstance(value, str):
            raise InputError(f"prompts file {path}, prompt {number}: {name} is not a text but {json.dumps(value)}")
    if not (row[column] or "").strip():
        raise InputError(f"prompts file {path}, prompt {number} has no text: write it, or take the row out")
    place = path.parent / image if image else None
    if place is not None and not place.is_file():
        raise InputError(f"prompts file {path}: the picture {place} does not exist")
    return Prompt(text=row[column].strip(), image=place, kind=kind, url=url, cluster=group.strip())
