"""Text from outside: what a terminal would obey is shown."""

from __future__ import annotations

import json

import pytest

from nemo_edge.system.terminal import visible, visible_json


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a pig, τ, 🐷\n\tà", "a pig, τ, 🐷\n\tà"),
        ("\x1b]52;c;AAAA\x07", "\\x1b]52;c;AAAA\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("over\rwritten\x7f\b", "over\\rwritten\\x7f\\x08"),
        ("gpj.\u202eexe\u2066", "gpj.\\u202eexe\\u2066"),
        ("\udc80 \U000e0041", "\\udc80 \\U000e0041"),
    ],
)
def test_what_would_be_obeyed_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_json_stays_json() -> None:
    value = {"prompt": "τ \x1b[2J \x9b \u202e \ud800 \U000e0041"}
    line = visible_json(value)
    assert json.loads(line) == value
    assert visible(line) == line
    assert "τ" in line
