"""Stages whose results are kept run once, and everything they leave becomes a part of the bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rebuilding import Record

from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.release import _cache
from nemo_edge.release._cache import cache_of, is_kept, prune, run_stages, times_of
from nemo_edge.release._inputs import read_inputs
from nemo_edge.release._stages import LazyCheckpoint, Stage, Work
from nemo_edge.system.files import sha256_file, temporary

KEYS = {"first": "a" * 64, "second": "b" * 64}


@pytest.fixture
def recipe(tiny_recipe: Path, tmp_path: Path) -> Recipe:
    return load_recipe(tiny_recipe).model_copy(update={"output": tmp_path / "out"})


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two stages that are kept and one that is not; returns the names of those that ran."""
    names: list[str] = []

    def first(work: Work, folder: Path) -> None:
        names.append("first")
        (folder / "part.txt").write_text((folder / "part.txt").read_text() + "more" if (folder / "part.txt").is_file() else "begun ")
        if (folder / "part.txt").read_text() == "begun " and work.recipe.name == "interrupted":
            raise KeyboardInterrupt

    def second(work: Work, folder: Path) -> None:
        names.append("second")
        assert list(folder.iterdir()) == []
        (folder / "sub").mkdir()
        (folder / "sub" / "read.txt").write_text((work.bundle / "part.txt").read_text())
        (folder / "notes.json").write_text("{}")

    def always(work: Work, folder: Path) -> None:
        names.append("always")
        assert (folder, sorted(work.results)) == (work.bundle, ["first", "second"])

    stages = [
        Stage("first", lambda _: 0, first, goes_on=True),
        Stage("second", lambda _: 0, second, private=("notes.json",)),
        Stage("always", None, always),
    ]
    monkeypatch.setattr(_cache, "stages_of", lambda _: stages)
    return names


def run(recipe: Recipe, bundle: Path) -> tuple[dict[str, str], Record]:
    bundle.mkdir()
    record = Record()
    return run_stages(Work(recipe, read_inputs(recipe), LazyCheckpoint(recipe.checkpoint), bundle, record), KEYS), record


def files(bundle: Path) -> dict[str, str]:
    return {p.relative_to(bundle).as_posix(): sha256_file(p) for p in bundle.rglob("*") if p.is_file()}


def test_what_is_kept_is_taken_and_what_was_edited_is_made_again(recipe: Recipe, ran: list[str], tmp_path: Path) -> None:
    hashes, _ = run(recipe, tmp_path / "one")
    assert hashes == files(tmp_path / "one")
    assert set(hashes) == {"part.txt", "sub/read.txt"}
    assert all(is_kept(recipe.output, stage, key) for stage, key in KEYS.items())
    again, record = run(recipe, tmp_path / "two")
    assert (again, files(tmp_path / "two")) == (hashes, hashes)
    assert (ran, record.skipped) == (["first", "second", "always", "always"], ["first", "second"])
    [edited] = cache_of(recipe.output).glob("second-*/sub/read.txt")
    edited.write_text("other")
    third, record = run(recipe, tmp_path / "three")
    assert (third, record.skipped, ran[-2:]) == (hashes, ["first"], ["second", "always"])


def test_an_interrupted_stage_that_goes_on_finds_what_it_left(recipe: Recipe, ran: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe.model_copy(update={"name": "interrupted"}), tmp_path / "one")
    assert not is_kept(recipe.output, "first", KEYS["first"])
    run(recipe, tmp_path / "two")
    assert (tmp_path / "two" / "part.txt").read_text() == "begun more"
    assert ran == ["first", "first", "second", "always"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"part.txt": 1}'])
def test_a_record_that_cannot_be_read_is_made_anew(recipe: Recipe, ran: list[str], tmp_path: Path, content: str) -> None:
    hashes, _ = run(recipe, tmp_path / "one")
    [record] = cache_of(recipe.output).glob("second-*/stage.json")
    record.write_text(content)
    again, record_of_run = run(recipe, tmp_path / "two")
    assert (again, record_of_run.skipped, ran[-2:]) == (hashes, ["first"], ["second", "always"])
    assert run(recipe, tmp_path / "three")[1].skipped == ["first", "second"]


def test_what_a_killed_stage_left_half_written_is_no_part_of_its_results(recipe: Recipe, ran: list[str], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe.model_copy(update={"name": "interrupted"}), tmp_path / "one")
    [folder] = cache_of(recipe.output).glob("first-*")
    temporary(folder / "part.txt").write_text("half")
    temporary(folder / "deep").mkdir()
    run(recipe, tmp_path / "two")
    assert ran[0] == "first"
    assert set(files(tmp_path / "two")) == {"part.txt", "sub/read.txt"}


def test_results_of_two_settings_are_kept_of_each_stage(recipe: Recipe) -> None:
    made = [cache_of(recipe.output) / f"{stage}-{digit * 12}" for digit in "abc" for stage in ("export", "tensorrt_rtx")]
    others = [cache_of(recipe.output) / "lock", cache_of(recipe.output) / "export-of-mine"]
    for age, folder in enumerate([*made, *others]):
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text("{}")
        os.utime(folder, (age, age))
    os.utime(made[0], (99, 99))  # used again
    prune(recipe.output)
    assert {*cache_of(recipe.output).iterdir()} == {made[0], made[3], made[4], made[5], *others}


def test_each_stage_says_which_of_how_many_it_is(recipe: Recipe, ran: list[str], tmp_path: Path) -> None:
    _, record = run(recipe, tmp_path / "one")
    called = ["stage 1 of 2, first", "stage 2 of 2, second"]
    assert record.notes == [f"{name}: {said}" for name in called for said in ("", "done in 0 s")]
    _, record = run(recipe, tmp_path / "two")
    assert record.notes == [f"{name}: nothing has changed" for name in called]
    [edited] = cache_of(recipe.output).glob("second-*/sub/read.txt")
    edited.write_text("other")
    (cache_of(recipe.output) / "times.json").write_text('{"second": 3.2}')
    _, record = run(recipe, tmp_path / "three")
    assert record.notes[1:] == [f"{called[1]}: , 3 s last time", f"{called[1]}: done in 0 s"]


def test_at_no_moment_of_a_stage_is_nothing_shown(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []

    class Watched(Record):
        shown: ClassVar[list[str]] = []

        @contextmanager
        def waiting(self, what: str) -> Iterator[None]:
            self.shown.append(what)
            yield
            self.shown.remove(what)

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def look(*given: Any, **options: Any) -> Any:
            seen.append((name, [*Watched.shown]))
            return function(*given, **options)

        return look

    stages = [
        Stage("first", lambda _: 0, watched("work", lambda work, folder: (folder / "a.txt").write_text("a"))),
        Stage("always", None, watched("work", lambda work, folder: None)),
    ]
    monkeypatch.setattr(_cache, "stages_of", lambda _: stages)
    for name in ("sha256_file", "copy_tree"):
        monkeypatch.setattr(_cache, name, watched(name, getattr(_cache, name)))
    for bundle in ("one", "two"):
        (tmp_path / bundle).mkdir()
        run_stages(Work(recipe, read_inputs(recipe), LazyCheckpoint(recipe.checkpoint), tmp_path / bundle, Watched()), KEYS)
    first, always = ["stage 1 of 1, first"], ["always"]
    made = [("work", first), ("sha256_file", first), ("copy_tree", first), ("work", always)]
    assert seen == [*made, ("sha256_file", first), ("copy_tree", first), ("work", always)]


def test_what_a_stage_took_is_kept_unless_it_was_interrupted(recipe: Recipe, ran: list[str], tmp_path: Path) -> None:
    assert times_of(recipe.output) == {}
    with pytest.raises(KeyboardInterrupt):
        run(recipe.model_copy(update={"name": "interrupted"}), tmp_path / "one")
    _, record = run(recipe, tmp_path / "two")
    assert record.notes[0].endswith(", from where it was interrupted")
    assert list(times_of(recipe.output)) == ["second"]
    for content in ("[", '{"second": ' + "9" * 400 + "}", '{"second": NaN}', '{"second": -1}', '{"second": "1"}'):
        (cache_of(recipe.output) / "times.json").write_text(content)
        assert times_of(recipe.output) == {}
