"""Every command that writes, killed at every rename, link and removal of a folder: what was there is there or its successor is, and the
same command once more ends as one that was never disturbed, with nothing left over.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from kills import Call, reached, tree, unexchanged

from nemo_edge.bundle.manifest import verify
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.release.rebake import rebake
from nemo_edge.release.review import judge_again, report_again
from nemo_edge.serving.repository import ship
from nemo_edge.serving.versions import PIPELINE, newest_pipeline, read_engine, read_pipeline
from nemo_edge.system.processes import rest

VOLATILE = ("manifest.json", "report/index.html", "report/report.json", "report/junit.xml", "report/model_card.md")
"""Files that say when they were made, or how long that took."""


@dataclass(frozen=True)
class Command:
    """A command in a folder that holds a finished bundle, `bundle`; `before` is what it finds done."""

    call: Call
    fewest: int
    """Points at which it was killed when this was written: fewer are a test that has gone blind."""
    before: Call | None = None
    whole: Callable[[Path], object] | None = None
    """Raises unless what a kill leaves can be used."""


def rebaking(folder: Path) -> None:
    own = NeuronSet.load(folder / "bundle" / "neurons.json")
    NeuronSet.from_lists(own.layers, [[1, 6], [0, 2, 3]]).save(folder.parent / f"{folder.name}.json")
    rebake(folder / "bundle", folder.parent / f"{folder.name}.json")


def judging(folder: Path) -> None:
    judge_again(folder / "bundle", GateSettings(memorization_score=False, schedule_floor=False, general_drift=0.2), write=True)


def reporting(folder: Path) -> None:
    report_again(folder / "bundle")


def shipping(folder: Path) -> None:
    ship(folder / "bundle", folder / "repository")


def bundle_is_whole(folder: Path) -> None:
    assert verify(folder / "bundle").passed


def repository_is_whole(folder: Path) -> None:
    """The newest pipeline, where there is one, calls versions that are there."""
    bundle_is_whole(folder)
    if (folder / "repository" / PIPELINE).is_dir() and any(p.name.isdigit() for p in (folder / "repository" / PIPELINE).iterdir()):
        newest = read_pipeline(newest_pipeline(folder / "repository"))
        for name in newest.models:
            read_engine(folder / "repository" / name / str(newest.number))


COMMANDS = {
    "rebake": Command(rebaking, 1, whole=bundle_is_whole),
    "rebake where nothing is exchanged": Command(partial(unexchanged, rebaking), 1, whole=bundle_is_whole),
    "gate": Command(judging, 1, whole=bundle_is_whole),
    "report": Command(reporting, 1, whole=bundle_is_whole),
    "ship": Command(shipping, 1, whole=repository_is_whole),
    "ship once more": Command(shipping, 1, shipping, repository_is_whole),
}


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """What the processes are forked from: with all that they import, and nothing of it run."""
    rest()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["nemo_edge.export.preload", __name__])


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_that_is_killed_anywhere_is_finished_by_the_same_command(command: Command, shippable: Path, tmp_path: Path) -> None:
    world, undisturbed = tmp_path / "world", tmp_path / "undisturbed"
    shutil.copytree(shippable, world / "bundle")
    if command.before:
        command.before(world)
    shutil.copytree(world, undisturbed)
    points = reached(command.call, undisturbed, tmp_path / "points")
    expected = tree(undisturbed)

    def kill(number: int) -> str:
        folder, log = tmp_path / f"at{number}", tmp_path / f"at{number}.log"
        shutil.copytree(world, folder)
        reached(command.call, folder, log, number)
        if command.whole:
            command.whole(folder)
        reached(command.call, folder, log)
        found = tree(folder)
        assert found.keys() == expected.keys(), (points[number - 1], found.keys() ^ expected.keys())
        changed = {name for name in found if found[name] != expected[name] and not name.endswith(VOLATILE)}
        assert not changed, (points[number - 1], changed)
        shutil.rmtree(folder)
        return points[number - 1]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = list(pool.map(kill, range(1, len(points) + 1)))
    print(f"{len(done)} points: {', '.join(sorted({point.partition(' ')[0] for point in done}))}")
    assert len(done) >= command.fewest
