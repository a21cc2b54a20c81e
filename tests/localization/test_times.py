"""Times beside results: neither is changed by the other."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from nemo_edge.localization._times import TIMES, Time, append_timed, times_beside
from nemo_edge.system.errors import InputError


class Result(BaseModel):
    name: str
    seconds: float | None = None


def test_a_result_is_the_same_line_however_long_it_took(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for seconds in (1.5, 2.5):
        append_timed(path, Result(name="a", seconds=seconds), Time(of="prompt", name="a", seconds=seconds))
    append_timed(path, Result(name="b"), Time(of="group", name="b", seconds=3.5))
    assert path.read_text().splitlines() == ['{"name": "a"}', '{"name": "a"}', '{"name": "b"}']
    assert times_beside(path, "prompt") == {"a": 2.5}
    assert times_beside(path, "group") == {"b": 3.5}


def test_times_that_were_not_kept_are_unknown_and_no_others_are_taken_for_them(tmp_path: Path) -> None:
    assert times_beside(tmp_path / "results.jsonl", "prompt") == {}
    (tmp_path / TIMES).write_text("{}\n")
    with pytest.raises(InputError, match="line 1 is not a time: delete the file and run again"):
        times_beside(tmp_path / "results.jsonl", "prompt")
