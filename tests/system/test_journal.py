"""Lines are appended one by one, and what an interruption cut off is neither read nor in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from nemo_edge.system.errors import InputError
from nemo_edge.system.journal import append, read_lines


class Finding(BaseModel):
    name: str
    value: float


def test_what_is_appended_is_read(tmp_path: Path) -> None:
    found = [Finding(name="a\nü", value=0.1), Finding(name="", value=2)]
    path = tmp_path / "new" / "found.jsonl"
    for each in found:
        append(path, each)
    assert list(read_lines(Finding, path)) == found
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("rest", [b'{"name": "c', b"{", b'{"name": "c", "value": 1}'])
def test_a_line_that_was_cut_off_gives_way(tmp_path: Path, rest: bytes) -> None:
    path, kept = tmp_path / "found.jsonl", Finding(name="a", value=1)
    for start in ([], [kept]):
        path.write_bytes("".join(f"{each.model_dump_json()}\n" for each in start).encode() + rest)
        assert list(read_lines(Finding, path)) == start
        append(path, Finding(name="b", value=2))
        assert [each.name for each in read_lines(Finding, path)] == [*(each.name for each in start), "b"]


def test_a_line_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    path.write_text('{"name": "a", "value": 1}\n{"name": "b"}\n{"name": "c", "value": 3}\n')
    lines = read_lines(Finding, path)
    assert next(lines).name == "a"
    with pytest.raises(InputError, match="line 2 is not a finding: delete the file"):
        next(lines)
