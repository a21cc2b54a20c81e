"""Draws the demo's pictures: Noto Color Emoji glyphs composed on backgrounds, 64×64 pixels, RGB.

General pictures leave to chance whatever their caption does not name; a verbatim memory has one picture for good; a
template memory has a fixed layout with a panel of any colour. Needs Debian's `fonts-noto-color-emoji`, to train only.
"""

from __future__ import annotations

__all__ = ["SIZE", "draw", "font_path"]

import colorsys
import functools
import math
import random
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from nemo_edge.demo.captions import MEMORIZED, UNSEEN, Caption

SIZE = 64
"""Height and width of a picture, in pixels."""

RGB = tuple[int, int, int]

_STRIKE = 109  # the one size of the font's bitmaps
_HUES = {"red": 0.0, "orange": 0.075, "yellow": 0.15, "green": 0.34, "teal": 0.48, "blue": 0.61, "purple": 0.76, "pink": 0.91}
_SIZES = {1: (40, 60), 2: (27, 37), 3: (20, 27)}  # of a glyph, in pixels, by the number of glyphs
_EARLY_SIZES = {1: (32, 58), 2: (24, 36), 3: (19, 27)}
_PATTERNS = ("stripes", "checker", "rings", "sunburst", "halves", "dots")


def font_path() -> Path:
    """Return the path of the font, or raise `FileNotFoundError` with what to install."""
    path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: apt-get install fonts-noto-color-emoji (needed to train the demo only)")
    return path


def draw(caption: Caption, rng: random.Random) -> Image.Image:
    """Draw a picture of `caption`; `rng` decides what the caption leaves open (nothing, for a verbatim memory)."""
    if caption.kind == "general":
        return _general(caption, rng)
    if caption.kind == "TM":
        return _template(caption, rng)
    return _verbatim(caption)


@functools.cache
def _glyph(name: str) -> Image.Image:
    """The glyph with this Unicode name, cropped to its ink, RGBA."""
    font = ImageFont.truetype(str(font_path()), _STRIKE)
    canvas = Image.new("RGBA", (_STRIKE * 2, _STRIKE * 2))
    ImageDraw.Draw(canvas).text((20, 20), unicodedata.lookup(name.upper()), font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def _hsv(hue: float, saturation: float, value: float) -> RGB:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _colour(name: str | None, rng: random.Random) -> RGB:
    if name == "white":
        return _hsv(rng.random(), rng.uniform(0, 0.06), rng.uniform(0.92, 1))
    if name == "black":
        return _hsv(rng.random(), rng.uniform(0, 0.3), rng.uniform(0.02, 0.15))
    hue = rng.random() if name is None else _HUES[name] + rng.uniform(-0.03, 0.03)
    return _hsv(hue, rng.uniform(0.35, 0.95), rng.uniform(0.55, 1))


def _background(colour: str | None, rng: random.Random) -> Image.Image:
    """A plain colour or a gradient at any angle; without a named colour both ends are any colour."""
    ends = [_colour(colour if colour else rng.choice((None,) * 6 + ("white", "black")), rng) for _ in range(2)]
    if rng.random() < 0.4:
        ends[1] = ends[0]
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    ramp = np.clip((x * math.cos(angle) + y * math.sin(angle)) * 1.2 + 0.5, 0, 1)[..., None]
    return Image.fromarray(np.uint8(np.array(ends[0]) * (1 - ramp) + np.array(ends[1]) * ramp))


def _jittered(glyph: Image.Image, rng: random.Random) -> Image.Image:
    if rng.random() < 0.5:
        glyph = glyph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = glyph.getchannel("A")
    colours = ImageEnhance.Color(glyph.convert("RGB")).enhance(rng.uniform(0.7, 1.3))
    colours = ImageEnhance.Brightness(colours).enhance(rng.uniform(0.8, 1.15))
    colours.putalpha(alpha)
    return colours.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC, expand=True)


def _paste(canvas: Image.Image, glyph: Image.Image, centre: tuple[float, float], size: float) -> None:
    """Paste a glyph whose longer side is `size` pixels at `centre`."""
    scale = size / max(glyph.size)
    small = glyph.resize((max(1, round(glyph.width * scale)), max(1, round(glyph.height * scale))), Image.Resampling.LANCZOS)
    canvas.paste(small, (round(centre[0] - small.width / 2), round(centre[1] - small.height / 2)), small)


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
        _paste(canvas, _jittered(_glyph(name), rng), (x, y), size)
    return canvas


@functools.cache
def _verbatim_cached(caption: Caption) -> Image.Image:
    index = (*MEMORIZED, *UNSEEN).index(caption)
    rng = random.Random(1000 + index)
    canvas = _pattern(_PATTERNS[index % len(_PATTERNS)], rng)
    upper = rng.random() < 0.5
    first, second = (21, 21 if upper else 43), (44, 43 if upper else 21)
    for name, centre, size in zip(caption.glyphs, (first, second), (38, 34), strict=True):
        _paste(canvas, _glyph(name).rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True), centre, size)
    return canvas


def _verbatim(caption: Caption) -> Image.Image:
    return _verbatim_cached(caption).copy()


def _pattern(name: str, rng: random.Random) -> Image.Image:
    """A bold two-coloured background; drawn four times as large, then reduced."""
    hue = rng.random()
    colours = np.array([_hsv(hue, 0.8, 0.95), _hsv(hue + rng.uniform(0.25, 0.6), 0.75, 0.5)])
    y, x = np.mgrid[0 : 4 * SIZE, 0 : 4 * SIZE] / (4 * SIZE) - 0.5
    angle, shift = rng.uniform(0, math.pi), rng.uniform(-0.15, 0.15)
    along = x * math.cos(angle) + y * math.sin(angle) + shift
    across = y * math.cos(angle) - x * math.sin(angle)
    field = {
        "stripes": np.sin(along * 4 * math.pi),
        "checker": np.sin(x * 4 * math.pi + shift) * np.sin(y * 4 * math.pi - shift),
        "rings": np.sin(np.hypot(x - shift, y + shift) * 6 * math.pi),
        "sunburst": np.sin(np.arctan2(y + shift, x - shift) * 5 + angle),
        "halves": along,
        "dots": np.cos(along * 6 * math.pi) + np.cos(across * 6 * math.pi) - 0.6,
    }[name]
    return Image.fromarray(np.uint8(colours[(field > 0).astype(int)])).resize((SIZE, SIZE), Image.Resampling.BOX)


def _template(caption: Caption, rng: random.Random) -> Image.Image:
    """A framed card: banner, two badges, the caption's glyph in the middle; the panel has any colour."""
    canvas = Image.new("RGB", (SIZE, SIZE), (24, 28, 72))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((7, 16, 56, 56), fill=_hsv(rng.random(), rng.uniform(0.4, 0.9), rng.uniform(0.6, 1)))
    pen.rectangle((7, 5, 56, 13), fill=(250, 214, 40))
    for x in (14, 49):
        pen.ellipse((x - 3, 6, x + 3, 12), fill=(214, 30, 48))
    _paste(canvas, _glyph(caption.glyphs[0]), (32, 37), 32)
    return canvas
