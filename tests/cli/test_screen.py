"""The terminal: colours of ours go through, what a text from outside would do does not."""

from __future__ import annotations

import pytest
from rich.table import Table

from nemo_edge.cli.screen import Console, show_line, size_words

EVIL = "pig\x1b]52;c;AAAA\x07\u202e"
SHOWN = "pig\\x1b]52;c;AAAA\\x07\\u202e"


@pytest.mark.parametrize("stderr", [False, True])
def test_a_text_is_shown_wherever_it_stands(capsys: pytest.CaptureFixture[str], stderr: bool) -> None:
    out, table = Console(stderr=stderr), Table("Prompt")
    table.add_row(EVIL)
    out.print(table)
    out.print(EVIL, markup=False, soft_wrap=True)
    told = capsys.readouterr()
    text = told.err if stderr else told.out
    assert text.count("\\x1b]52") == 2
    assert "\x1b]" not in text
    assert "\u202e" not in text


def test_colours_of_ours_go_through(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Console().print(f"[red]red[/] {EVIL}", soft_wrap=True, highlight=False)
    out = capsys.readouterr().out
    assert "\x1b[31mred\x1b[0m" in out
    assert "\\x1b]52" in out


def test_a_line_is_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    show_line(f"[red] {EVIL}")
    assert capsys.readouterr().out == f"[red] {SHOWN}\n"


@pytest.mark.parametrize(
    ("size", "words"), [(0, "0 B"), (999, "999 B"), (999_600, "1 MB"), (1_218_012, "1.22 MB"), (3_456_000_000, "3.46 GB")]
)
def test_sizes_have_three_digits(size: int, words: str) -> None:
    assert size_words(size) == words
