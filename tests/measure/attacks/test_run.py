"""The jobs of an attack: of each kind the positive control first, and what depends on nothing else is done once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.measure.attacks._run import Run
from nemo_edge.measure.attacks.controls import Known
from nemo_edge.measure.attacks.subject import Place, Subject, open_subject
from nemo_edge.recipe.settings import AttackSettings, CheckpointSettings, SamplingSettings
from nemo_edge.system.progress import Progress

SETTINGS = AttackSettings(
    batches=6, candidates=3, words=1, variants=2, steps=1, seeds=1, text=("greedy search",), starts=("prompt", "noise")
)


@pytest.fixture
def memory(tmp_path: Path) -> Known:
    """Half dark, half light: its mean colour is far away."""
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[::2] = 255
    Image.fromarray(picture).save(tmp_path / "a.png")
    return Known(tmp_path / "a.png", (32, 32), "a red pig")


def run_of(subject: Subject, memory: Known, journal: Path, settings: AttackSettings = SETTINGS) -> Run:
    return Run(subject, (memory,), (), settings, journal, Progress())


def place(toy_folder: Path) -> Place:
    return Place(CheckpointSettings(path=str(toy_folder)), None, SamplingSettings(steps=1, guidance=1.0))


def test_the_hash_of_the_inputs_hangs_on_the_settings_and_not_on_the_ways(toy_folder: Path, memory: Known, tmp_path: Path) -> None:
    """So that another way is added to what is done."""
    with open_subject(place(toy_folder), None) as subject:
        changes: tuple[dict[str, object], ...] = ({}, {"starts": ()}, {"seed": 1})
        first, fewer, other = (run_of(subject, memory, tmp_path / "j", SETTINGS.model_copy(update=change)).inputs for change in changes)
    assert first == fewer != other


def test_every_job_is_kept_and_a_twin_is_not_done_again(toy_folder: Path, memory: Known, tmp_path: Path) -> None:
    with open_subject(place(toy_folder), None) as subject:
        results = run_of(subject, memory, tmp_path / "j.jsonl").results()
    assert [(each.group, each.way) for each in results] == [
        ("unmitigated", "greedy search"),
        ("memories", "greedy search"),
        ("unmitigated", "unrelated"),
        ("memories", "prompt"),
        ("memories", "noise"),
    ]
    assert results[0].attempts == results[1].attempts, "nothing is silenced, so that the positive control is the attack"
    assert len((tmp_path / "j.jsonl").read_text().splitlines()) == len(results)


def test_a_search_ends_when_the_picture_is_back(toy_folder: Path, memory: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every picture is a copy where the limit is 2, none where it is below 0."""
    tried = {}
    with open_subject(place(toy_folder), None) as subject:
        for limit in (2.0, -1.0):
            monkeypatch.setattr(Known, "limit", lambda _self, _threshold, limit=limit: limit)
            found = run_of(subject, memory, tmp_path / f"{limit}", SETTINGS.model_copy(update={"starts": (), "batches": 24})).results()[0]
            tried[limit] = {attempt.text for attempt in found.attempts}
    assert len(tried[2.0]) == 1 < len(tried[-1.0])


class Notes(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, message: str) -> None:
        self.told.append(message)


def test_a_picture_of_nearly_one_colour_is_named(toy_folder: Path, memory: Known, tmp_path: Path) -> None:
    """Of the striped one nothing is said."""
    Image.fromarray(np.full((32, 32, 3), 77, np.uint8)).save(tmp_path / "plain.png")
    plain, notes = Known(tmp_path / "plain.png", (32, 32), "an owl"), Notes()
    settings = SETTINGS.model_copy(update={"text": (), "starts": ("prompt",)})
    with open_subject(place(toy_folder), None) as subject:
        Run(subject, (memory, plain), (), settings, tmp_path / "j.jsonl", notes).results()
    assert len(notes.told) == 1
    assert notes.told[0].endswith("only near exact copies count: plain.png")
