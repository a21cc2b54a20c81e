"""Rows of a file, whatever its form: every one with its place, and none that does not fit its header."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_edge.recipe._tables import ENDINGS, Row, read_rows
from nemo_edge.system.errors import InputError

Write = Callable[[str, str | bytes], Path]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_row_has_the_line_it_begins_on(written: Write, end: str) -> None:
    text = end.join(["a;b", "1;2", "", '"x', 'y";3', "4;5", ""])
    assert read_rows(written("t.csv", text)) == [
        Row("line 2", {"a": "1", "b": "2"}),
        Row("line 3", {}),
        Row("line 4", {"a": "x\ny", "b": "3"}, lines=2),
        Row("line 6", {"a": "4", "b": "5"}),
    ]


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.csv", "a,b\n1,2\n1,2,3\n", "line 3 has 3 fields, its header in line 1 2 fields"),
        ("t.csv", 'a,b\n1,"2\n3,4\n', "the row of line 2 opens a quote that is not closed"),
        ("t.tsv", "a\ta\n1\t2\n", "has the column 'a' twice"),
        ("t.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not JSON"),
        ("t.json", '{"a": 1}', "expected an array"),
        ("t.xlsx", "a", f"has the ending .xlsx: give one of {', '.join(ENDINGS)}"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_line(written: Write, name: str, text: str, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        read_rows(written(name, text))
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


def test_utf_16_without_a_mark_is_told_by_its_zeros(written: Write) -> None:
    for encoding in ("utf-16-le", "utf-16-be", "utf-8"):
        assert read_rows(written("t.txt", "a red pig\nan owl".encode(encoding))) == read_rows(written("u.txt", "a red pig\nan owl"))
