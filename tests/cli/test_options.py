"""A result is printed as a table for people, or as one JSON object."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from nemo_edge.cli.options import open_model, print_result
from nemo_edge.system.errors import InputError


class Judged(BaseModel):
    name: str
    passed_gates: int = 0

    @property
    def passed(self) -> bool:
        return self.passed_gates > 0


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (Judged(name="größer"), {"name": "größer", "passed_gates": 0, "passed": False}),
        ({"pictures": ["a.png"]}, {"pictures": ["a.png"]}),
    ],
)
def test_a_result_is_one_json_object_with_its_verdict_or_what_is_shown(
    capsys: pytest.CaptureFixture[str], result: Any, expected: dict[str, Any]
) -> None:
    shown: list[Any] = []
    print_result(result, True, shown.append)
    out = capsys.readouterr().out
    assert (json.loads(out), out.count("\n"), shown) == (expected, 1, [])
    print_result(result, False, shown.append)
    assert (capsys.readouterr().out, shown) == ("", [result])


def test_what_is_no_checkpoint_is_refused() -> None:
    with pytest.raises(InputError):
        open_model("/nowhere", False)
