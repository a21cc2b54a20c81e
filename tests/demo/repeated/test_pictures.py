"""What is fixed in a picture and what is not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from nemo_edge.demo.glyphs import glyph
from nemo_edge.demo.repeated.captions import MEMORIZED, UNSEEN, Caption
from nemo_edge.demo.repeated.pictures import NARROW, WIDE, Variety, draw, draw_memorized, tinted


def test_a_memorized_caption_has_one_picture_unlike_what_its_words_alone_show(font: Path) -> None:
    pictures = [np.asarray(draw_memorized(caption)).astype(int) for caption in (*MEMORIZED, *UNSEEN)]
    assert all(np.abs(a - b).mean() > 20 for i, a in enumerate(pictures) for b in pictures[:i])
    again = np.asarray(draw_memorized(MEMORIZED[0])).astype(int)
    assert (again == pictures[0]).all()
    others = [np.asarray(draw(MEMORIZED[0], random.Random(seed))).astype(int) for seed in range(5)]
    assert min(np.abs(other - pictures[0]).mean() for other in others) > 20


@pytest.mark.parametrize(("place", "axis", "far"), [("left", 1, False), ("right", 1, True), ("top", 0, False), ("bottom", 0, True)])
def test_an_object_is_where_its_caption_says(font: Path, place: str, axis: int, far: bool) -> None:
    """By how much a picture differs from the same one with another object."""
    for seed in range(5):
        captions = (Caption(name, size="small", ground="teal", place=place) for name in ("fox", "key"))
        one, other = (np.asarray(draw(caption, random.Random(seed))).astype(int) for caption in captions)
        changed = np.abs(one - other).sum(axis=-1) > 60
        assert (np.argwhere(changed)[:, axis].mean() > 32) == far


def test_a_tinted_glyph_has_one_colour_and_keeps_its_shape(font: Path) -> None:
    plain, blue = glyph("fox face"), tinted(glyph("fox face"), "blue")
    assert (np.asarray(plain.getchannel("A")) == np.asarray(blue.getchannel("A"))).all()
    solid = np.asarray(blue)[np.asarray(plain.getchannel("A")) == 255].astype(int)
    assert (solid[:, 2] >= solid[:, 0]).all()


def test_ground_and_light_differ_from_draw_to_draw(font: Path) -> None:
    a, b = (np.asarray(draw(Caption("fox", ground="teal"), random.Random(seed))).astype(int) for seed in (0, 1))
    assert np.abs(a - b).mean() > 5


@pytest.mark.parametrize(("variety", "spread"), [(NARROW, False), (WIDE, True)])
def test_an_object_without_a_place_is_in_the_middle_or_anywhere(font: Path, variety: Variety, spread: bool) -> None:
    """By where a picture differs from the same one with another object."""
    middles = []
    for seed in range(12):
        captions = (Caption(name, size="small", ground="teal") for name in ("fox", "key"))
        one, other = (np.asarray(draw(caption, random.Random(seed), variety)).astype(int) for caption in captions)
        middles.append(np.argwhere(np.abs(one - other).sum(axis=-1) > 60).mean(axis=0))
    assert bool((np.abs(np.array(middles) - 32).max(axis=1) > 9).any()) == spread
