"""One command at a time writes into a bundle: every other that would is refused before its work, and nothing is changed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from elsewhere import elsewhere

from nemo_edge.bundle.manifest import amend, open_bundle, verify
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.release.build import build
from nemo_edge.release.compile import compile_again
from nemo_edge.release.rebake import rebake
from nemo_edge.release.review import judge_again, report_again, time_again
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file
from nemo_edge.system.outputs import lock

Command = Callable[[Path, Path], object]

WRITERS: dict[str, Command] = {
    "build": lambda bundle, recipe: build(load_recipe(recipe).model_copy(update={"output": bundle, "name": "other"})),
    "rebake": lambda bundle, _: rebake(bundle, bundle / "neurons.json", measure=True),
    "compile": lambda bundle, _: compile_again(bundle, "tensorrt-rtx"),
    "bench": lambda bundle, _: time_again(bundle, None),
    "gate": lambda bundle, _: judge_again(bundle, GateSettings(), write=True),
    "report": lambda bundle, _: report_again(bundle),
    "amend": lambda bundle, _: amend(bundle, open_bundle(bundle), lambda staged: None),
}
READERS: dict[str, Command] = {
    "gate": lambda bundle, _: judge_again(bundle, GateSettings(), write=False),
    "verify": lambda bundle, _: verify(bundle),
}


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("command", WRITERS.values(), ids=WRITERS)
def test_a_command_that_writes_waits_for_nobody(command: Command, bundle: Path, tiny_recipe: Path) -> None:
    with lock(bundle):
        before = tree(bundle.parent)
        with pytest.raises(InputError, match=r"another command is writing to .*: wait for it, or give another output"):
            elsewhere(lambda: command(bundle, tiny_recipe))
        assert tree(bundle.parent) == before


@pytest.mark.parametrize("command", READERS.values(), ids=READERS)
def test_a_command_that_reads_is_not_refused(command: Command, bundle: Path, tiny_recipe: Path) -> None:
    with lock(bundle):
        elsewhere(lambda: command(bundle, tiny_recipe))


def test_a_bundle_that_is_a_link_is_written_where_it_leads(bundle: Path, tmp_path: Path) -> None:
    link = tmp_path / "elsewhere" / "link"
    link.parent.mkdir()
    link.symlink_to(bundle)
    report_again(link)
    judge_again(link, GateSettings(general_drift=0.2), write=True)
    assert link.is_symlink()
    assert verify(bundle).passed
    assert open_bundle(bundle).recipe["gates"]["general_drift"] == 0.2
    assert [p.name for p in link.parent.iterdir()] == ["link"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "elsewhere"]
