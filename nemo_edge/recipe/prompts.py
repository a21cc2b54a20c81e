"""Lists of prompts: read from text, CSV, TSV or JSON, with the training picture of each where it is known."""

from __future__ import annotations

__all__ = ["Given", "Prompt", "as_prompts", "check_apart", "distinct", "read_labelled", "read_prompts"]

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemo_edge.recipe._tables import Row, read_rows
from nemo_edge.system.errors import InputError
from nemo_edge.system.reading import check_regular

_COLUMNS = {
    "text": ("caption", "prompt", "text"),
    "image": ("image", "file_name"),
    "kind": ("type", "kind"),
    "url": ("url",),
    "cluster": ("cluster",),
}
"""The names of a prompt's columns in any case, the first before the others: LAION writes TEXT, image folders `file_name`."""
_NOTHING = {"", "#N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
"""What pandas writes or reads for a field that holds nothing."""
_NAMED = 3
"""Prompts that a complaint names."""
_LETTERS = 60
"""Letters of a prompt that a complaint shows."""
Given = str | PathLike[str] | Sequence[str]
"""Prompts as they are given: the path of a list, or the texts themselves."""


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


def read_prompts(path: Path, limit: int | None = None, tell: Callable[[str], None] | None = None) -> list[Prompt]:
    """Read prompts from `.txt` (one a line), `.csv`, `.tsv`, `.json` or `.jsonl`, of the column Caption, prompt or text.

    Rows without a prompt, empty or pandas' `nan`, are left out; `tell` gets one line with how many were read, left out, and are there
    twice, where not each is a prompt of its own. Images are looked up beside the file. Raises `InputError` for a file that is missing,
    empty, binary, not Unicode, too large or of another ending, has no column of prompts, or a row that does not fit its header.
    """
    rows = read_rows(path)
    found = [(row, _prompt(row, path)) for row in rows]
    prompts = [prompt for _, prompt in found if prompt]
    if not prompts:
        raise InputError(f"prompts file {path} holds no prompt: write one prompt a line, or a CSV with a column Caption")
    said = _told(path, found, prompts)
    if tell is not None and said:
        tell(said)
    return prompts[:limit]


def as_prompts(given: Given, tell: Callable[[str], None] | None = None) -> list[Prompt]:
    """Return the prompts of a list, as `read_prompts` does, or those of some texts; a `str` is a path.

    Raises `InputError` as `read_prompts` does, and where there are no texts, or one of them is empty or none.
    """
    if isinstance(given, str | PathLike):
        return read_prompts(Path(given), tell=tell)
    texts = list(given)
    if not texts:
        raise InputError("no prompt is given: give the path of a list, or texts")
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"prompt {number} of those given is not a text but {text!r}: write it, or leave it out")
    return [Prompt(text=text.strip()) for text in texts]


def read_labelled(prompts: Given, general: Given | None, tell: Callable[[str], None] | None = None) -> list[Prompt]:
    """Read prompts, and with `general` prompts that are known not to be memorized: the others then count as memorized.

    A prompt's own label (`kind`) goes before that. Raises `InputError` as `as_prompts` does, and for a prompt that counts as both.
    """
    listed = as_prompts(prompts, tell)
    if general is not None:
        memorized = [p if p.kind else p.model_copy(update={"kind": "VM or TM"}) for p in listed]
        listed = [*memorized, *(p if p.kind else p.model_copy(update={"kind": "N"}) for p in as_prompts(general, tell))]
    places = (_place(prompts if general is None else general), _place(prompts))
    check_apart([p for p in listed if p.label is False], [p for p in listed if p.label], *places)
    return listed


def _place(given: Given) -> Path | str:
    """What a complaint calls the prompts that are given."""
    return Path(given) if isinstance(given, str | PathLike) else "the texts given"


def distinct(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Return the prompts, in order, without those that a text encoder reads as one before them: case and white space are the same to it."""
    found: dict[str, Prompt] = {}
    for prompt in prompts:
        found.setdefault(_as_read(prompt.text), prompt)
    return list(found.values())


def check_apart(general: Iterable[Prompt], memorized: Iterable[Prompt], general_path: Path | str, memorized_path: Path | str) -> None:
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


def _told(path: Path, found: Sequence[tuple[Row, Prompt | None]], prompts: Sequence[Prompt]) -> str:
    """One line on what became of the rows; empty where each of them is a prompt of its own, read from the one column there is."""
    left_out, long = [row.place for row, prompt in found if not prompt], [row.place for row, _ in found if row.lines > 1]
    twice = len(prompts) - len(distinct(prompts))
    said = f"prompts file {path}: {len(prompts)} read, {len(left_out)} left out{_places(left_out)}, {twice} duplicate{'s' * (twice != 1)}"
    said += f"; {len(long)} over several lines{_places(long)}" if long else ""
    columns = next(_columns(row, "text", path) for row, prompt in found if prompt)
    said += f"; of the columns {', '.join(columns)} the first was read" if len(columns) > 1 else ""
    return said if left_out or twice or long or len(columns) > 1 else ""


def _places(places: Sequence[str]) -> str:
    more = ", …" if len(places) > _NAMED else ""
    return f" ({', '.join(places[:_NAMED])}{more})" if places else ""


def _prompt(row: Row, path: Path) -> Prompt | None:
    """The prompt of a row; None where the row is empty, or its prompt is."""
    if not row.values:
        return None
    texts = _columns(row, "text", path)
    if not texts:
        found = ", ".join(map(repr, row.values)) or "none"
        raise InputError(f"prompts file {path}, {row.place} has no column of prompts: expected Caption, prompt or text, found {found}")
    values = {field: _value(row, texts[:1] if field == "text" else _columns(row, field, path), path) for field in _COLUMNS}
    if not values["text"]:
        return None
    place = path.parent / values["image"] if values["image"] else None
    if place is not None:
        check_regular(place, f"prompts file {path}, {row.place}: the picture", remedy="name one that is there")
    return Prompt(text=values["text"], image=place, kind=values["kind"], url=values["url"], cluster=values["cluster"])


def _columns(row: Row, field: str, path: Path) -> list[str]:
    """The names of the columns that may hold a field, as the file writes them. Raises `InputError` for one in two spellings."""
    names = {name: [own for own in row.values if own.casefold() == name] for name in _COLUMNS[field]}
    for spellings in names.values():
        if len(spellings) > 1:
            raise InputError(f"prompts file {path} has the columns {' and '.join(map(repr, spellings))}: rename one of them")
    return [spelling for spellings in names.values() for spelling in spellings]


def _value(row: Row, names: Sequence[str], path: Path) -> str:
    """The text of the first of these columns that holds one."""
    for name in names:
        value = row.values[name]
        if value is None or (isinstance(value, float) and value != value):  # NaN
            continue
        if not isinstance(value, str):
            raise InputError(f"prompts file {path}, {row.place}: {name} is not a text but {json.dumps(value)}")
        if value.strip() not in _NOTHING:
            return value.strip()
    return ""
