"""Draws the rooms of `nemo_edge/` and who imports whom, as `docs/rooms.svg`, from the imports themselves.

    python docs/rooms.py [--check]

The rooms stand in the order of the contract in `pyproject.toml`, and what each is for is in the table of `CONTRIBUTING.md`. With
`--check` nothing is written; exit code 1 when the picture is not what the imports say.
"""

from __future__ import annotations

__all__ = ["Line", "direct", "imports", "lines", "order", "picture", "purposes"]

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PICTURE = Path(__file__).with_suffix(".svg")
PACKAGE = "nemo_edge"
BOX, HEIGHT, GAP = 590, 38, 22
"""Width and height of a room, and what is between two."""
LANE, RADIUS, HEAD = 26, 10, 7
"""Between two lines at one side; of their corners; length of an arrow's head."""
MARGIN, CAPTION = 28, 58
STYLE = """
  svg { --page: #ffffff; --edge: #d5dae1; --room: #f5f7fa; --name: #17202c; --text: #566173; }
  @media (prefers-color-scheme: dark) {
    svg { --page: #11161e; --edge: #333d4b; --room: #1a212c; --name: #eef2f7; --text: #a3afc0; }
  }
  text { font-family: system-ui, -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; font-size: 13px; fill: var(--text); }
  .name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-weight: 600; fill: var(--name); }
  .page { fill: var(--page); stroke: var(--edge); }
  .room { fill: var(--room); stroke: var(--edge); }
  .line { fill: none; stroke-width: 1.8; }
"""

Arrows = dict[str, set[str]]


class Line(NamedTuple):
    """An arrow between rooms that are no neighbours: from row `start` down to row `end`, at one side, `lane` lines out."""

    start: int
    end: int
    right: bool
    lane: int


def main() -> None:
    """Write the picture, or check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when the picture is not up to date")
    drawn = picture(ROOT)
    if not parser.parse_args().check:
        PICTURE.write_text(drawn, encoding="utf-8")
    elif not PICTURE.is_file() or PICTURE.read_text(encoding="utf-8") != drawn:
        sys.exit(f"docs/{PICTURE.name} is not what the imports say; run `python docs/rooms.py`")


def order(root: Path) -> list[str]:
    """The rooms as the contract has them: the last is what all others stand on."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    found: list[str] = next(contract for contract in contracts if contract["type"] == "layers")["layers"]
    return found


def purposes(root: Path) -> dict[str, str]:
    """Room → what it is for, as the table has them."""
    return dict(re.findall(r"^\| `(\w+)/` \| (.+) \|$", (root / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE))


def imports(root: Path) -> Arrows:
    """Room → the others that its files import from, wherever in them."""
    package = root / PACKAGE
    found: Arrows = {door.parent.name: set() for door in package.glob("*/__init__.py")}
    for room, arrows in found.items():
        for path in (package / room).rglob("*.py"):
            named = {name.split(".")[1] for name in _named(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith(f"{PACKAGE}.")}
            arrows |= named & found.keys() - {room}
    return found


def _named(tree: ast.AST) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def direct(arrows: Mapping[str, set[str]]) -> Arrows:
    """The arrows that others do not imply: those to what a room reaches only so (the transitive reduction)."""

    def below(room: str) -> set[str]:
        return arrows[room].union(*map(below, arrows[room]))

    return {room: {other for other in own if not any(other in below(between) for between in own)} for room, own in arrows.items()}


def lines(rows: Sequence[str], arrows: Mapping[str, set[str]]) -> list[Line]:
    """A side and a lane for each arrow between rooms that are no neighbours, the shortest next to the rooms.

    Each takes the side where it crosses fewer, then that where it has to go out less far.
    """
    pairs = [(rows.index(room), rows.index(other)) for room in rows for other in arrows[room]]
    found: list[Line] = []
    for start, end in sorted((p for p in pairs if p[1] > p[0] + 1), key=lambda pair: (pair[1] - pair[0], pair)):
        choices = []
        for right in (True, False):
            beside = [line for line in found if line.right == right and line.start < end and start < line.end]
            crossed = sum((line.start < start) == (line.end < end) and start != line.start and end != line.end for line in beside)
            lane = 1 + max((line.lane for line in beside), default=0)
            choices.append((crossed, lane, not right, Line(start, end, right, lane)))
        found.append(min(choices)[-1])
    return found


def picture(root: Path) -> str:
    """The whole file. Raises `KeyError` for a room that the table does not have."""
    rows, arrows, purpose = order(root), imports(root), purposes(root)
    drawn = direct(arrows)
    sides = lines(rows, drawn)
    left, right = (max((line.lane for line in sides if line.right == side), default=0) * LANE + MARGIN + RADIUS for side in (False, True))
    width, height = left + BOX + right, 2 * MARGIN + len(rows) * (HEIGHT + GAP) - GAP + CAPTION
    colours = [f"hsl({268 - 88 * row / max(len(rows) - 1, 1):.0f} 50% 56%)" for row in range(len(rows))]
    count, total = (sum(map(len, each.values())) for each in (drawn, arrows))
    says = (
        "An arrow is an import; all point down.",
        f"{count} of {total} are drawn: every other one leads to a room that is reached through these, too.",
    )
    parts = [
        *(_side(line, left, colours[line.start]) for line in sides),
        *(_down(row, left + BOX / 2, colours[row]) for row, (room, below) in enumerate(pairwise(rows)) if below in drawn[room]),
        *(_room(row, room, purpose[room], left, colours[row]) for row, room in enumerate(rows)),
        *(
            f'<text x="{left + BOX / 2:g}" y="{height - MARGIN - 20 * (1 - i)}" text-anchor="middle">{escape(text)}</text>'
            for i, text in enumerate(says)
        ),
    ]
    return "\n".join([*_frame(width, height), *parts, "</svg>", ""])


def _frame(width: int, height: int) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>The rooms of {PACKAGE} and the arrows between them</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" x="0.5" y="0.5" width="{width - 1}" height="{height - 1}" rx="12"/>',
    ]


def _top(row: int) -> int:
    return MARGIN + row * (HEIGHT + GAP)


def _room(row: int, name: str, purpose: str, left: int, colour: str) -> str:
    top, base = _top(row), _top(row) + HEIGHT / 2 + 4.5
    return (
        f'<rect class="room" x="{left}" y="{top}" width="{BOX}" height="{HEIGHT}" rx="7"/>'
        f'<rect x="{left + 8}" y="{top + 9}" width="4" height="{HEIGHT - 18}" rx="2" fill="{colour}"/>'
        f'<text class="name" x="{left + 24}" y="{base:g}">{escape(name)}</text><text x="{left + 136}" y="{base:g}">{escape(purpose)}</text>'
    )


def _down(row: int, middle: float, colour: str) -> str:
    """The arrow from a room to the next."""
    start, end = _top(row) + HEIGHT, _top(row + 1) - 1
    head = f"{middle - 4:g},{end - HEAD} {middle + 4:g},{end - HEAD} {middle:g},{end}"
    return f'<path class="line" stroke="{colour}" d="M{middle:g} {start} V{end - HEAD}"/><polygon fill="{colour}" points="{head}"/>'


def _side(line: Line, left: int, colour: str) -> str:
    """The arrow that passes rooms by: out of the lower half of one, into the upper half of the other."""
    out = 1 if line.right else -1
    edge = left + BOX if line.right else left
    away, start, end = edge + out * line.lane * LANE, _top(line.start) + HEIGHT * 0.7, _top(line.end) + HEIGHT * 0.3
    turn, sweep, neck = out * RADIUS, int(line.right), edge + out * (HEAD + 1)
    path = (
        f"M{edge} {start:g} H{away - turn} a{RADIUS} {RADIUS} 0 0 {sweep} {turn} {RADIUS} V{end - RADIUS:g} "
        f"a{RADIUS} {RADIUS} 0 0 {sweep} {-turn} {RADIUS} H{neck}"
    )
    head = f"{neck},{end - 4:g} {neck},{end + 4:g} {edge + out},{end:g}"
    return f'<path class="line" stroke="{colour}" d="{path}"/><polygon fill="{colour}" points="{head}"/>'


if __name__ == "__main__":
    main()
