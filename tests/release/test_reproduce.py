"""The same inputs are the same model, wherever, whenever and with however much memory it is built; others are another."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_edge.bundle.identity import RELIED_ON, counted, is_apart
from nemo_edge.bundle.manifest import MANIFEST, amend, open_bundle
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.release.reproduce import Reproduced, reproduce
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import names_in, write_atomically

ELSEWHERE = """
import sys
from nemo_edge.system import memory
memory.memory_available = lambda: 10**12  # as on a machine that has a terabyte free
from nemo_edge.release.build import build
print(build(sys.argv[1]).identity)
"""


def test_each_file_of_a_bundle_is_relied_on_or_apart(tiny_bundle: Path) -> None:
    """A new kind of file is put on one of the two lists of `nemo_edge/bundle/identity.py`."""
    names = [name for name in names_in(tiny_bundle) if name != MANIFEST]
    unsorted = [name for name in names if not is_apart(name) and not any(Path(name).match(pattern) for pattern in RELIED_ON)]
    assert unsorted == []
    assert {name for name in names if is_apart(name) and not name.startswith("report/")} == {"measurement.json", "localization_times.jsonl"}


def test_what_counts_says_nothing_of_when_and_where(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle)
    for name in counted(manifest.files, manifest.plans):
        content = (tiny_bundle / name).read_bytes()
        for said in (b"seconds", b"local_files_only", b"name_or_path", str(tiny_bundle.parent).encode()):
            assert said not in content, (name, said)
    assert manifest.measurements.keys() == {"measurement.json"}


def test_two_builds_in_different_folders_are_the_same_model(tiny_bundle: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    clone = tmp_path / "a clone" / "deeper"
    shutil.copytree(tiny_recipe.parent, clone, ignore=shutil.ignore_patterns("out", ".out.*"))
    offline = os.environ.get("HF_HUB_OFFLINE", "1")
    other = {"HF_HUB_OFFLINE": "" if offline else "1", "SOURCE_DATE_EPOCH": "1700000000", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", ELSEWHERE, str(clone / "recipe.toml")]
    ran = subprocess.run(command, env={**os.environ, **other}, capture_output=True, text=True, check=True)
    made, before = open_bundle(clone / "out"), open_bundle(tiny_bundle)
    assert counted(made.files, made.plans) == counted(before.files, before.plans)
    assert ran.stdout.splitlines()[-1] == made.identity == before.identity
    assert (made.created, made.measurements) == ("2023-11-14T22:13:20+00:00", {"measurement.json": "2023-11-14T22:13:20+00:00"})
    assert made.identity in (clone / "out" / "report" / "index.html").read_text()


def test_a_bundle_that_was_changed_is_not_what_its_recipe_comes_to(tiny_bundle: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    same = open_bundle(bundle)
    changed = amend(bundle, same, lambda staged: write_atomically(staged / "unet" / "config.json", "{}"))
    found = reproduce(load_recipe(tiny_recipe).model_copy(update={"output": bundle}))
    assert found == Reproduced(bundle=str(bundle), identity=changed.identity, again=same.identity, differing=("unet/config.json",))
    assert not found.passed
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert open_bundle(bundle) == changed


def test_what_is_not_built_yet_is_not_built_again(tiny_recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist, so that there is nothing to compare with: build it first, without --check"):
        reproduce(load_recipe(tiny_recipe).model_copy(update={"output": tmp_path / "out"}))
    assert list(tmp_path.iterdir()) == []
