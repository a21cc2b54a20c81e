"""The picture of the rooms is what the imports say, and says so when it is not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import util
from itertools import combinations
from pathlib import Path
from types import ModuleType

import grimp
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def rooms() -> ModuleType:
    spec = util.spec_from_file_location("rooms", ROOT / "docs" / "rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """What the picture is made from, and itself."""
    shutil.copytree(ROOT / "nemo_edge", tmp_path / "nemo_edge", ignore=lambda _, names: [n for n in names if "." in n and n[-3:] != ".py"])
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.png"))
    for name in ("pyproject.toml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "docs/rooms.py", "--check"], cwd=root, capture_output=True, text=True, check=False)


def reached(arrows: dict[str, set[str]], room: str) -> set[str]:
    return arrows[room].union(*(reached(arrows, other) for other in arrows[room]))


def test_the_picture_is_up_to_date() -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("nemo_edge/serving/shipment.py", lambda text: f"{text}\nfrom nemo_edge import export\n"),
        ("pyproject.toml", lambda text: text.replace('  "report",\n  "export",\n', '  "export",\n  "report",\n')),
        ("CONTRIBUTING.md", lambda text: text.replace("| a bundle on a server |", "| something else |")),
        ("docs/rooms.svg", lambda text: text.replace("</svg>", "")),
    ],
)
def test_a_stale_picture_is_refused(copied: Path, file: str, change: Callable[[str], str]) -> None:
    path = copied / file
    before = path.read_text()
    path.write_text(change(before))
    assert path.read_text() != before
    done = check(copied)
    assert done.returncode == 1
    assert "run `python docs/rooms.py`" in done.stderr


def test_the_script_draws_it_anew(copied: Path) -> None:
    picture = copied / "docs" / "rooms.svg"
    drawn = picture.read_bytes()
    picture.unlink()
    assert check(copied).returncode == 1
    subprocess.run([sys.executable, "docs/rooms.py"], cwd=copied, check=True)
    assert picture.read_bytes() == drawn


def test_its_imports_are_those_that_the_contract_sees(rooms: ModuleType) -> None:
    graph = grimp.build_graph("nemo_edge", cache_dir=None)
    found: dict[str, set[str]] = {}
    for module in (name for name in graph.modules if "." in name):
        room = module.split(".")[1]
        named = {name.split(".")[1] for name in graph.find_modules_directly_imported_by(module) if "." in name}
        found[room] = found.get(room, set()) | named - {room}
    assert rooms.imports(ROOT) == found


def test_what_is_drawn_implies_the_rest_and_nothing_less_does(rooms: ModuleType) -> None:
    arrows = rooms.imports(ROOT)
    drawn = rooms.direct(arrows)
    assert {room: reached(drawn, room) for room in drawn} == {room: reached(arrows, room) for room in arrows}
    for room, others in drawn.items():
        for other in others:
            fewer = {**drawn, room: others - {other}}
            assert other not in reached(fewer, room)


def test_the_table_and_the_picture_have_the_rooms_in_the_contracts_order(rooms: ModuleType) -> None:
    rows = rooms.order(ROOT)
    assert list(rooms.purposes(ROOT)) == rows
    assert set(rooms.imports(ROOT)) == set(rows)


def test_no_two_lines_lie_on_one_another(rooms: ModuleType) -> None:
    rows = [str(i) for i in range(8)]
    every = {room: set(rows[i + 1 :]) for i, room in enumerate(rows)}
    for arrows in (every, rooms.direct(rooms.imports(ROOT))):
        found = rooms.lines(list(arrows) if arrows is every else rooms.order(ROOT), arrows)
        for one, other in combinations(found, 2):
            assert (one.right, one.lane) != (other.right, other.lane) or one.end <= other.start or other.end <= one.start


def test_lines_cross_only_where_they_must_and_stay_near(rooms: ModuleType) -> None:
    def sides(arrows: dict[str, set[str]]) -> list[tuple[bool, int]]:
        found = rooms.lines("abcdef", {**{room: set() for room in "abcdef"}, **arrows})
        return [(line.right, line.lane) for line in found]

    assert sides({"a": {"d"}, "b": {"e"}}) == [(True, 1), (False, 1)]
    assert sides({"a": {"d"}, "b": {"e"}, "c": {"f"}}) == [(True, 1), (False, 1), (True, 2)]  # the third crosses one on either side
    assert sides({"a": {"c"}, "c": {"e"}}) == [(True, 1), (True, 1)]
