"""What pictures are made of."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.demo.glyphs import HUES, PATTERNS, SIZE, glyph, hsv, jittered, paste, pattern


def test_a_glyph_is_cropped_to_its_ink(font: Path) -> None:
    alpha = np.asarray(glyph("fish").getchannel("A"))
    assert alpha[0].any()
    assert alpha[-1].any()
    assert alpha[:, 0].any()
    assert alpha[:, -1].any()


def test_a_glyph_is_pasted_in_its_size_at_its_centre(font: Path) -> None:
    canvas = Image.new("RGB", (SIZE, SIZE))
    paste(canvas, glyph("fish"), (20, 40), 16)
    rows, columns = np.nonzero(np.asarray(canvas).sum(axis=-1))
    assert max(np.ptp(rows), np.ptp(columns)) == 15
    assert (rows.min() + rows.max() + 1) / 2 == pytest.approx(40, abs=1)
    assert (columns.min() + columns.max() + 1) / 2 == pytest.approx(20, abs=1)


def test_a_jittered_glyph_differs_from_draw_to_draw(font: Path) -> None:
    sizes = {jittered(glyph("fish"), random.Random(seed)).size for seed in range(5)}
    assert len(sizes) > 1


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_has_two_colours_the_first_of_the_hue_asked_for(name: str) -> None:
    colours = np.asarray(pattern(name, random.Random(0), HUES["blue"])).reshape(-1, 3)
    shown, counts = np.unique(colours, axis=0, return_counts=True)
    first, second = shown[np.argsort(counts)[-2:]]
    assert tuple(hsv(HUES["blue"], 0.8, 0.95)) in (tuple(first), tuple(second))
    assert np.abs(first.astype(int) - second.astype(int)).sum() > 60
