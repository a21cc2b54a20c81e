"""Draws one plot as inline SVG that takes the page's font and colours, and always comes out the same.

Knows matplotlib and nothing of what is drawn.
"""

from __future__ import annotations

__all__ = ["INK", "LIMIT", "LINE", "SERIES", "SOFT", "Plot", "draw"]

import io
import logging
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Colours that stand for the page's CSS variables: matplotlib writes them, `_themed` replaces them.
INK, SOFT, LINE, LIMIT = "#010101", "#010102", "#010103", "#010104"
SERIES = ("#010111", "#010112", "#010113", "#010114")

_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", LIMIT: "--limit", **{c: f"--series-{i}" for i, c in enumerate(SERIES, 1)}}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nemo-edge",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 10.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "legend.handlelength": 1.2,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}
_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Plot:
    """One finished plot. `label` says in words what the drawing shows, `table` holds its numbers where they are few."""

    name: str
    title: str
    svg: str
    caption: str
    label: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def draw(
    name: str,
    label: str,
    paint: Callable[[Sequence[Axes]], None],
    height: float = 3.0,
    panels: int = 1,
    width: float = 5.4,
) -> str:
    """Return the SVG that `paint` draws on so many panels, one below the other, that share their x axis.

    `name` is unique in the page and `label` is read out in the drawing's place; sizes are in inches.
    """
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    file = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's own font lacks; the page's font draws it
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
        paint(list(axes))
        figure.savefig(file, format="svg", metadata=_METADATA)
    return _themed(file.getvalue(), name, label)


def _themed(svg: str, name: str, label: str) -> str:
    """Make matplotlib's file a part of the page: no prolog, ids of its own, CSS variables for colours, the page's font."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"(?i)#0101(?:0[1-4]|1[1-4])", lambda m: f"var({_VARIABLES[m[0].lower()]})", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    svg = re.sub(r"font: ([\d.]+)px inherit", r"font-size: \1px", svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box, "matplotlib writes the size of every drawing"
    tag = f'<svg {box[0]} role="img" aria-label="{escape(label)}" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return re.sub(r"<svg[^>]*>", lambda _: tag, svg, count=1).strip()
