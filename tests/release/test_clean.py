"""What can be made again, and what killed runs left, is shown with its size; only what is asked for goes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from elsewhere import elsewhere

from nemo_edge.bundle.manifest import verify
from nemo_edge.release._cache import cache_of
from nemo_edge.release.clean import Cleaned, clean
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import temporary
from nemo_edge.system.outputs import beside, former_of, lock


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder with traces in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    traces = tmp_path / "home" / "nemo-edge" / "traces"
    traces.mkdir(parents=True)
    (traces / "graph.onnx").write_bytes(b"x" * 300)
    return traces


@pytest.fixture
def outputs(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with a bundle, its stages, and what killed runs have left beside it and beside another file."""
    folder = tmp_path / "outputs"
    for name in ("out", ".out.build"):
        shutil.copytree(tiny_bundle.parent / name, folder / name)
    left = temporary(folder / "out")
    left.mkdir()
    (left / "half").write_bytes(b"x" * 200)
    temporary(folder / "stats.safetensors").write_bytes(b"x" * 100)
    (folder / ".mine.20241130").mkdir()
    (folder / ".swift.build").mkdir()
    (folder / ".swift.build" / "mine").write_text("")
    return folder


def found(cleaned: Cleaned) -> set[tuple[str, str, bool]]:
    return {(Path(each.path).name.partition(".part")[0][:5], each.kind, each.removed) for each in cleaned.found}


def test_what_killed_runs_left_goes_and_the_caches_are_shown(outputs: Path, home: Path) -> None:
    cleaned = clean(outputs)
    assert found(cleaned) == {
        (".out.", "leftover", True),
        (".stat", "leftover", True),
        (".out.", "stages", False),
        ("trace", "cache", False),
    }
    assert cleaned.removed_bytes == 300
    assert {p.name for p in outputs.iterdir()} == {"out", ".out.build", ".mine.20241130", ".swift.build"}
    sizes = {each.kind: each.size_bytes for each in cleaned.found}
    assert sizes["cache"] == 300
    assert sizes["stages"] == sum(p.stat().st_size for p in cache_of(outputs / "out").rglob("*") if p.is_file())
    assert clean(outputs).removed_bytes == 0


def test_everything_is_all_that_can_be_made_again(outputs: Path, home: Path) -> None:
    cleaned = clean(outputs / "out", everything=True)  # the bundle alone
    assert found(cleaned) == {(".out.", "leftover", True), (".out.", "stages", True), ("trace", "cache", True)}
    assert not home.exists()
    assert not cache_of(outputs / "out").exists()
    assert verify(outputs / "out").passed
    assert [each.kind for each in clean(outputs).found] == ["leftover"]


def test_a_bundle_that_was_moved_aside_is_put_back_first(outputs: Path, home: Path) -> None:
    (outputs / "out").rename(former_of(outputs / "out"))
    clean(outputs)
    assert verify(outputs / "out").passed


def test_what_another_command_is_writing_to_is_left_alone(outputs: Path, home: Path) -> None:
    with lock(outputs / "out"):
        staged = temporary(outputs / "out")
        staged.mkdir()
        cleaned = elsewhere(lambda: clean(outputs, everything=True))
        notes = {each.kind: each.note for each in cleaned.found if not each.removed}
        assert notes.keys() == {"leftover", "stages"}
        assert all("another command is writing to" in note for note in notes.values())
        assert staged.is_dir()
        assert cache_of(outputs / "out").is_dir()


def test_an_unfinished_hardening_is_a_cache(outputs: Path, home: Path) -> None:
    work = beside(outputs / "hard", "hardening")
    work.mkdir()
    (work / "rounds.jsonl").write_text("{}\n")
    assert (".hard", "unfinished", False) in found(clean(outputs))
    assert (".hard", "unfinished", True) in found(clean(outputs, everything=True))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder: give a bundle, or a folder of bundles"):
        clean(tmp_path / "none")
