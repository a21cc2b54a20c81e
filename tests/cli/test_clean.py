"""`nemo-edge clean` says what there is and what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.test_main import Run, assert_refused, run
from nemo_edge.system.files import temporary

__all__ = ["run"]


def test_what_is_kept_and_what_goes_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    traces = tmp_path / "home" / "nemo-edge" / "traces"
    traces.mkdir(parents=True)
    (traces / "graph.onnx").write_bytes(b"x" * 2_000_000)
    left = temporary(tmp_path / "attack.json")
    left.write_bytes(b"x" * 1_000_000)
    shown = run("clean", tmp_path)
    assert (shown.code, shown.err) == (0, "")
    assert "1.0 MB removed" in shown.out
    assert "the caches go with --all" in shown.out
    assert [line.split()[1:] for line in shown.out.splitlines() if "nemo-edge" in line] == [["cache", "2.0", "no"]]
    assert not left.exists()
    told = json.loads(run("clean", tmp_path, "--all", "--json").out)
    assert [(each["kind"], each["size_bytes"], each["removed"]) for each in told["found"]] == [("cache", 2_000_000, True)]
    assert not traces.exists()


def test_a_folder_that_is_not_there_is_refused(run: Run, tmp_path: Path) -> None:
    assert_refused(run("clean", tmp_path / "none"), "is no folder")
