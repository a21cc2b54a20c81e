"""`nemo-edge init`: options or questions in, a recipe out that `build --dry-run` takes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from cli.test_main import Run, assert_refused
from cli.test_main import run as run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lists(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "m.csv").write_text("Caption\na red pig\n")
    (tmp_path / "g.txt").write_text("a dog\na cat\na bus\na key\na bell\n")
    return tmp_path / "m.csv", tmp_path / "g.txt"


def test_a_recipe_is_written_and_taken(run: Run, tmp_path: Path, toy_folder: Path, lists: tuple[Path, Path]) -> None:
    file, options = tmp_path / "first.toml", ("--prompts", lists[0], "--general", lists[1])
    ran = run("init", toy_folder, *options, "-o", file)
    assert (ran.code, ran.err) == (0, "")
    assert "80 value neurons in 7 layers can be searched for memories" in ran.out
    assert f"written to {file}" in ran.out
    assert ran.out.splitlines()[-1] == f"then: nemo-edge build {file} --dry-run"
    shown = run("build", file, "--dry-run")
    assert (shown.code, "1 memorized" in shown.out) == (0, True)
    assert_refused(run("init", toy_folder, *options, "-o", file), "is there already", "--force")
    found = json.loads(run("init", toy_folder, *options, "-o", file, "--force", "--json").out)
    assert (found["recipe"], found["found"]["neurons"], found["missing"]) == (str(file), 80, [])


def test_what_is_not_given_is_asked_for_in_a_terminal(
    run: Run, tmp_path: Path, toy_folder: Path, lists: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal(f"{toy_folder}\n{lists[0]}\n\n"))
    ran = run("init", "-o", "first.toml")
    assert ran.code == 0, ran.err
    assert "Checkpoint (diffusers folder" in ran.err
    assert "List of general prompts" in ran.err
    assert "still to do: put your prompts into prompts/general.txt beside it" in ran.out
    assert "general prompts are in the repository too: --general calib/general.txt" in ran.out
    assert 'memorized = "m.csv"' in Path("first.toml").read_text()


def test_nothing_is_asked_where_nobody_answers(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("init"), "no checkpoint is given: nemo-edge init CHECKPOINT")
    assert_refused(run("init", "none"), "checkpoint none does not exist")
    monkeypatch.setattr(sys, "stdin", Terminal(""))
    assert_refused(run("init", "--json"), "no checkpoint is given")
    assert list(tmp_path.iterdir()) == []
