"""The groups of the help: each command in its own, and an example that the command takes."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from cli.test_bundle import COMMANDS
from cli.test_main import Run
from cli.test_main import run as run
from nemo_edge.cli import attacks
from nemo_edge.cli import bundle as cli_bundle
from nemo_edge.cli.main import app
from nemo_edge.cli.panels import EXAMPLES, Panels, add

EVERY = {command: example for examples in EXAMPLES.values() for command, example in examples.items()}


def test_the_help_names_every_command_in_its_group(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("--help").out.partition("this message and exit.")[2]
    assert re.findall(r"(?m)^  (\w+)", shown) == COMMANDS
    assert re.findall(r"(?m)^(\w+):$", shown) == ["Build", "Find", "Engines", "Judge", "Serve", "Machine"]
    commands = {name.removesuffix("_engines") for name in (*cli_bundle.__all__, *attacks.__all__)}
    assert commands - {"register"} <= set(COMMANDS)


@pytest.mark.parametrize("columns", [80, 100])
def test_no_line_of_the_help_is_cut(run: Run, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run("--help").out.splitlines()
    assert [line for line in lines if line.endswith(("...", "…")) and not line.startswith("Usage:")] == []
    assert all(len(line) <= columns for line in lines)


def test_every_command_is_in_one_group_with_an_example() -> None:
    assert list(EVERY) == COMMANDS
    assert sum(map(len, EXAMPLES.values())) == len(EVERY)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_example_is_what_the_command_takes(name: str) -> None:
    group: Any = get_command(app)
    words = shlex.split(EVERY[name].replace("\\\n", " "))
    assert words[:2] == ["nemo-edge", name]
    context = group.commands[name].make_context(name, words[2:])
    assert context.params


def test_a_command_that_is_not_in_the_table_comes_last_without_example() -> None:
    other = typer.Typer(cls=Panels, rich_markup_mode=None, add_completion=False)

    def stray() -> None:
        """Go astray."""

    def doctor() -> None:
        """Say something."""

    for function in (stray, doctor):
        add(other, function)
    shown = CliRunner().invoke(other, ["--help"]).output
    assert shown.index("Machine:") < shown.index("Commands:\n  stray   Go astray.")
    assert "Example" not in CliRunner().invoke(other, ["stray", "--help"]).output
