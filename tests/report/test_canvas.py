"""A plot is plain SVG in the page's colours, with names of its own, the same every time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from matplotlib.axes import Axes

from nemo_edge.report._canvas import LIMIT, SERIES, draw


def paint(axes: Sequence[Axes]) -> None:
    axes[0].plot([1, 2, 3], [1, 4, 9], "o-", color=SERIES[0], label="<b> & $x")
    axes[0].axhline(2, color=LIMIT)
    axes[0].set_title("標題 $\\frac <script>")
    axes[0].legend()


def test_the_svg_is_well_formed_and_themed() -> None:
    svg = draw("name", 'what it "shows" & <says>', paint)
    root = ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    assert (root.get("role"), root.get("aria-label")) == ("img", 'what it "shows" & <says>')
    assert not re.findall(r"#(?!name-)[0-9a-f]{6}\b", svg)
    assert {"var(--series-1)", "var(--limit)", "var(--soft)"} <= set(re.findall(r"var\(--[\w-]+\)", svg))
    assert "DejaVu" not in svg
    assert "<style" not in svg


def test_text_is_text() -> None:
    svg = draw("name", "label", paint)
    assert "標題 $\\frac &lt;script&gt;" in svg
    assert "<script" not in svg


def test_names_are_of_one_plot_and_refer_to_it() -> None:
    svg = draw("name", "label", paint)
    names = set(re.findall(r'\bid="([^"]*)"', svg))
    assert all(name.startswith("name-") for name in names)
    assert set(re.findall(r'(?:url\(|href=")#([^")]*)', svg)) <= names


def test_it_is_the_same_every_time() -> None:
    assert draw("name", "label", paint) == draw("name", "label", paint)
