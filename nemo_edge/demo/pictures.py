"""Draws the demo's pictures: Noto Color Emoji glyphs composed on backgrounds, 64×64 pixels, RGB.

General pictures leave to chance whatever their caption does not name; a verbatim memory has one picture for good; a
template memory has a fixed layout with a panel of any colour.
"""

from __future__ import annotations

__all__ = ["draw"]

import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw

from nemo_edge.demo.captions import MEMORIZED, UNSEEN, Caption
from nemo_edge.demo.glyphs import HUES, PATTERNS, RGB, SIZE, glyph, hsv, jittered, paste, pattern

_SIZES = {1: (40, 60), 2: (27, 37), 3: (20, 27)}  # of a glyph, in pixels, by the number of glyphs
_EARLY_SIZES = {1: (32, 58), 2: (24, 36), 3: (19, 27)}


def draw(caption: Caption, rng: random.Random) -> Image.Image:
    """Draw a picture of `caption`; `rng` decides what the caption leaves open (nothing, for a verbatim memory)."""
    if caption.kind == "general":
        return _general(caption, rng)
    if caption.kind == "TM":
        return _template(caption, rng)
    return _verbatim(caption)


def _colour(name: str | None, rng: random.Random) -> RGB:
    if name == "white":
        return hsv(rng.random(), rng.uniform(0, 0.06), rng.uniform(0.92, 1))
    if name == "black":
        return hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.02, 0.15))
    hue = rng.random() if name is None else HUES[name] + rng.uniform(-0.03, 0.03)
    return hsv(hue, rng.uniform(0.35, 0.95), rng.uniform(0.55, 1))


def _background(colour: str | None, rng: random.Random) -> Image.Image:
    """A plain colour or a gradient at any angle; without a named colour both ends are any colour."""
    ends = [_colour(colour if colour else rng.choice((None,) * 6 + ("white", "black")), rng) for _ in range(2)]
    if rng.random() < 0.4:
        ends[1] = ends[0]
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    ramp = np.clip((x * math.cos(angle) + y * math.sin(angle)) * 1.2 + 0.5, 0, 1)[..., None]
    return Image.fromarray(np.uint8(np.array(ends[0]) * (1 - ramp) + np.array(ends[1]) * ramp))


def _places(count: int, rng: random.Random, *, early: bool) -> list[tuple[float, float, float]]:
    """Centres and sizes of `count` glyphs that hardly overlap."""
    low, high = (_EARLY_SIZES if early else _SIZES)[count]
    while True:
        places = []
        for _ in range(count):
            size = rng.uniform(low, high)
            inset = size * 0.46
            places.append((rng.uniform(inset, SIZE - inset), rng.uniform(inset, SIZE - inset), size))
        pairs = [(a, b) for i, a in enumerate(places) for b in places[:i]]
        if all(math.dist(a[:2], b[:2]) > 0.45 * (a[2] + b[2]) for a, b in pairs):
            return places


def _general(caption: Caption, rng: random.Random) -> Image.Image:
    canvas = _background(caption.colour, rng)
    for name, (x, y, size) in zip(caption.glyphs, _places(len(caption.glyphs), rng, early=caption.early), strict=True):
        paste(canvas, jittered(glyph(name), rng), (x, y), size)
    return canvas


@functools.cache
def _verbatim_cached(caption: Caption) -> Image.Image:
    index = (*MEMORIZED, *UNSEEN).index(caption)
    rng = random.Random(1000 + index)
    canvas = pattern(PATTERNS[index % len(PATTERNS)], rng)
    upper = rng.random() < 0.5
    first, second = (21, 21 if upper else 43), (44, 43 if upper else 21)
    for name, centre, size in zip(caption.glyphs, (first, second), (38, 34), strict=True):
        paste(canvas, glyph(name).rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True), centre, size)
    return canvas


def _verbatim(caption: Caption) -> Image.Image:
    return _verbatim_cached(caption).copy()


def _template(caption: Caption, rng: random.Random) -> Image.Image:
    """A framed card: banner, two badges, the caption's glyph in the middle; the panel has any colour."""
    canvas = Image.new("RGB", (SIZE, SIZE), (24, 28, 72))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((7, 16, 56, 56), fill=hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.6, 1)))
    pen.rectangle((7, 5, 56, 13), fill=(250, 214, 40))
    for x in (14, 49):
        pen.ellipse((x - 3, 6, x + 3, 12), fill=(214, 30, 48))
    paste(canvas, glyph(caption.glyphs[0]), (32, 37), 32)
    return canvas
