"""How a dry run looks: in words, within 80 columns, and with what is known of the time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.test_main import STAGES, Run, recipe_in
from cli.test_main import run as run
from nemo_edge.cli.plans import show_plan, words_of
from nemo_edge.release.build import Plan, plan


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def shown(capsys: pytest.CaptureFixture[str], found: Plan) -> list[str]:
    show_plan(found)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines[:-1])  # the last has the bundle's path
    return [" ".join(line.split()) for line in lines]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Path) -> Plan:
    return plan(recipe_in(tmp_path_factory.mktemp("fresh"), tiny_recipe))


def test_what_it_is_made_from_and_takes_is_said_in_words(capsys: pytest.CaptureFixture[str], fresh: Plan) -> None:
    lines = shown(capsys, fresh)
    assert "prompts 2 memorized, no training picture known: copies will not be counted" in lines
    assert "4 general to calibrate, 2 to compare" in lines
    assert "pictures 32 × 32 pixels, 3 steps, guidance 7, 2 of each memorized prompt" in lines
    assert any(line.startswith("memory about ") and line.endswith(" GB free") for line in lines)
    assert any(line.startswith("disk about ") for line in lines)
    rows = [line for line in lines if line.endswith("would run not measured yet")]
    assert [row.split()[:2] for row in rows] == [[str(i), stage] for i, stage in enumerate(STAGES, 1)]
    assert lines[-1].endswith(f": would be built, {len(STAGES)} of {len(STAGES)} stages would run")


def test_what_stages_took_before_is_said(capsys: pytest.CaptureFixture[str], fresh: Plan) -> None:
    seconds = dict.fromkeys(STAGES, 100.0) | {"measure": 3600.0}
    known = fresh.model_copy(update={"forecast": fresh.forecast.model_copy(update={"seconds": seconds}), "done": STAGES[:2]})
    lines = shown(capsys, known)
    assert "1 calibrate statistics of neurons, and τ done took 100 s" in lines
    assert "5 measure pictures, with and without would run 60 min last time" in lines
    assert lines[-1].endswith("3 of 5 stages would run, about 63 min as last time")


def test_a_bundle_that_is_there_has_nothing_to_do(capsys: pytest.CaptureFixture[str], tiny_recipe: Path, tiny_bundle: Path) -> None:
    found = plan(tiny_recipe)
    lines = shown(capsys, found)
    assert lines[-1] == f"{tiny_bundle}: up to date, nothing would run"
    assert not any("would run" in line for line in lines[:-1])
    assert sum(" done took " in line for line in lines) == len(STAGES)


def test_a_dry_run_says_the_same_on_the_command_line(run: Run, tmp_path: Path, tiny_recipe: Path) -> None:
    ran = run("build", recipe_in(tmp_path, tiny_recipe), "--dry-run")
    assert (ran.code, ran.err) == (0, "")
    assert "2 memorized, no training picture known" in ran.out


def test_what_does_not_fit_is_marked(capsys: pytest.CaptureFixture[str], fresh: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    room: Any = fresh.forecast.room
    small = fresh.forecast.model_copy(update={"room": room.model_copy(update={"memory_free_bytes": 1})})
    show_plan(fresh.model_copy(update={"forecast": small}))
    marked = [line for line in capsys.readouterr().out.splitlines() if "\x1b[33m" in line]
    assert any("0.0 GB free" in line for line in marked)


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (119, "119 s"), (180, "3 min"), (7000, "117 min"), (9000, "2.5 h")])
def test_a_time_is_said_in_its_unit(seconds: float, words: str) -> None:
    assert words_of(seconds) == words
