"""The kit of the GPU benchmark, cut and joined: small wheels made here, no network."""

from __future__ import annotations

import json
import os
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.gpu import join, prepare

FILES = {
    "core": {"alpha/__init__.py": b"ONE = 1\n", "alpha/data/empty": b"", "alpha-1.dist-info/METADATA": b"Name: alpha\n"},
    "onnxruntime": {"beta/lib.so": os.urandom(25_000), "beta/nothing.bin": bytes(40_000)},
}


def wheel(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file, content in files.items():
            entry = zipfile.ZipInfo(file)
            entry.external_attr = (0o755 if file.endswith(".so") else 0o644) << 16
            archive.writestr(entry, content)
    return path


def write_kit(folder: Path, files: dict[str, dict[str, bytes]], part_bytes: int = 10_000) -> Path:
    folder.mkdir()
    groups = []
    for number, (name, content) in enumerate(files.items(), 1):
        cut = prepare.Cut(folder, f"{number}-{name}.tar.xz", part_bytes)
        prepare.pack([wheel(folder.parent, name, content)], cut)
        groups.append({"name": name, "packages": {name: {"version": "1"}}, **cut.facts()})
    (folder / "kit.json").write_text(json.dumps({"groups": groups, "absent": {"tensorrt": "not on this index"}}))
    return folder


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    return write_kit(tmp_path / "kit", FILES)


def content(site: Path) -> dict[str, bytes]:
    """What is in a joined folder; a part of a name with a dot in front is the joiner's own."""
    files = {path.relative_to(site).as_posix(): path.read_bytes() for path in site.rglob("*") if path.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(".joined/")}


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    return int(module.main())


def test_what_was_cut_is_joined_byte_for_byte(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = sorted(path.name for path in kit.glob("2-*"))
    assert parts == ["2-onnxruntime.tar.xz.01", "2-onnxruntime.tar.xz.02", "2-onnxruntime.tar.xz.03"]
    assert max(path.stat().st_size for path in kit.glob("*.xz.*")) == 10_000
    site = tmp_path / "site"
    assert run(join, monkeypatch, kit, "--to", site) == 0
    assert content(site) == {**FILES["core"], **FILES["onnxruntime"]}
    assert os.access(site / "beta" / "lib.so", os.X_OK)
    assert not os.access(site / "alpha" / "__init__.py", os.X_OK)


def test_the_same_wheels_give_the_same_parts(kit: Path, tmp_path: Path) -> None:
    again = write_kit(tmp_path / "again", FILES)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in kit.iterdir()}


def test_what_a_wheel_keeps_in_data_lies_where_python_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"core": {"alpha-1.data/purelib/alpha.py": b"1", "alpha-1.data/scripts/alpha": b"#!python"}}
    site = tmp_path / "site"
    assert run(join, monkeypatch, write_kit(tmp_path / "kit", files), "--to", site) == 0
    assert content(site) == {"alpha.py": b"1", "alpha-1.data/scripts/alpha": b"#!python"}


def test_a_group_waits_for_its_missing_part(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late, site = tmp_path / "late", tmp_path / "site"
    late.mkdir()
    (kit / "2-onnxruntime.tar.xz.02").rename(late / "2-onnxruntime.tar.xz.02")
    assert run(join, monkeypatch, kit, "--to", site) == 0
    assert capsys.readouterr().out.splitlines() == [
        "core: joined (core 1)",
        "onnxruntime: not joined, 2-onnxruntime.tar.xz.02 is missing",
    ]
    assert content(site) == FILES["core"]
    assert run(join, monkeypatch, kit, "--to", site, "--have", tmp_path / "nowhere", late) == 0
    assert capsys.readouterr().out.splitlines() == ["core: is joined already", "onnxruntime: joined (onnxruntime 1)"]
    assert content(site) == {**FILES["core"], **FILES["onnxruntime"]}


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: data[:-1] + bytes([data[-1] ^ 1])], ids=["short", "one-bit"])
def test_without_an_intact_core_the_exit_code_is_2(
    kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spoil: Any
) -> None:
    part, site = kit / "1-core.tar.xz.01", tmp_path / "site"
    good = part.read_bytes()
    part.write_bytes(spoil(good))
    assert run(join, monkeypatch, kit, "--to", site) == 2
    assert capsys.readouterr().out.splitlines()[0] == "core: not joined, 1-core.tar.xz.01 is broken: copy it again"
    assert content(site) == FILES["onnxruntime"]
    copied = tmp_path / "copied"
    copied.mkdir()
    (copied / part.name).write_bytes(good)
    assert run(join, monkeypatch, kit, "--to", site, "--have", copied) == 0


def test_joining_again_leaves_what_is_there_alone(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    assert run(join, monkeypatch, kit, "--to", site) == 0
    before = {path: path.stat().st_ino for path in site.rglob("*")}
    for part in kit.glob("*.xz.*"):
        part.unlink()
    assert run(join, monkeypatch, kit, "--to", site) == 0
    assert {path: path.stat().st_ino for path in site.rglob("*")} == before


def test_a_newer_kit_takes_the_place_of_the_older(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, newer = tmp_path / "site", {"core": {"alpha/__init__.py": b"ONE = 2\n", "alpha-2.dist-info/METADATA": b"Name: alpha\n"}}
    assert run(join, monkeypatch, kit, "--to", site) == 0
    assert run(join, monkeypatch, write_kit(tmp_path / "newer", newer), "--to", site) == 0
    assert content(site) == {**newer["core"], **FILES["onnxruntime"]}


@pytest.mark.parametrize("moves", range(7))
def test_an_interrupted_join_is_made_good_by_the_next(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    """An older core gives way to this one, and the join stops before its rename number `moves`, in every place there is."""
    site, older = tmp_path / "site", {"core": {"alpha/__init__.py": b"old", "alpha-0.dist-info/METADATA": b"old"}}
    assert run(join, monkeypatch, write_kit(tmp_path / "older", older), "--to", site) == 0
    left, replace = [moves], os.replace

    def stops(source: Path, target: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stops)
        assert run(join, patched, kit, "--to", site) == 130
    assert not list(site.glob(".join-*"))
    whole = {name.split("/")[0] for name in content(site)}
    for name in whole:  # an entry is that of the one kit or of the other, and complete
        now = {file: data for file, data in content(site).items() if file.startswith(f"{name}/")}
        assert now in [{f: d for f, d in files.items() if f.startswith(f"{name}/")} for files in (older["core"], *FILES.values())]
    assert run(join, monkeypatch, kit, "--to", site) == 0
    assert content(site) == {**FILES["core"], **FILES["onnxruntime"]}


def test_what_a_killed_join_left_is_removed(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    (site / ".join-killed" / "unpacked").mkdir(parents=True)
    (site / ".join-killed" / "unpacked" / "half").write_bytes(b"h")
    assert run(join, monkeypatch, kit, "--to", site) == 0
    assert content(site) == {**FILES["core"], **FILES["onnxruntime"]}


def test_a_folder_without_a_kit_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(join, monkeypatch, tmp_path, "--to", tmp_path / "site") == 2
    assert run(prepare, monkeypatch, "--to", tmp_path, "--plan") == 2
    (tmp_path / "mine").touch()
    assert run(prepare, monkeypatch, "--to", tmp_path) == 2
    joined, planned, prepared = capsys.readouterr().err.splitlines()
    assert joined.startswith("join: ")
    assert "give the folder that prepare.py made" in joined
    assert planned.startswith("prepare: ")
    assert "without --plan first" in planned
    assert "holds something else than a kit" in prepared
    assert (tmp_path / "mine").exists()


def test_the_plan_adds_the_parts_up_in_the_order_of_their_use(
    kit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(prepare, monkeypatch, "--to", kit, "--plan") == 0
    head, *rows, absent = capsys.readouterr().out.splitlines()
    sizes = [(kit / row.split()[0]).stat().st_size for row in rows]
    assert [row.split()[0] for row in rows] == sorted(path.name for path in kit.glob("*.xz.*"))
    assert float(rows[-1].split()[2]) == round(sum(sizes) / 1e6, 1)
    assert rows[0].endswith(prepare.GROUPS["core"])
    assert rows[-1].endswith(prepare.GROUPS["onnxruntime"])
    assert max(map(len, [head, *rows, absent])) <= 80
    assert absent.split() == ["tensorrt", "not", "on", "this", "index"]


def test_only_a_kit_whose_parts_are_intact_is_used_again(kit: Path, tmp_path: Path) -> None:
    group, new = json.loads((kit / "kit.json").read_text())["groups"][1], tmp_path / "new"
    new.mkdir()
    last = kit / group["parts"][-1]["name"]
    good = last.read_bytes()
    last.write_bytes(good[:-1])
    assert not prepare.reused(group, kit, new)
    assert list(new.iterdir()) == []
    last.write_bytes(good)
    assert prepare.reused(group, kit, new)
    assert {path.name for path in new.iterdir()} == {part["name"] for part in group["parts"]}
