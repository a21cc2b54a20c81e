"""Draws the second checkpoint's pictures: one glyph on a ground, 64×64 pixels, RGB.

General pictures leave to chance what their caption does not name: within narrow limits those that the network is trained on, widely
those of the recogniser, which has to be right about whatever is drawn. A memorized caption's picture shows what its words say, and
much that they do not: a bold pattern, a companion, how the object is turned.
"""

from __future__ import annotations

__all__ = ["NARROW", "WIDE", "Variety", "draw", "draw_memorized", "tinted"]

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from nemo_edge.demo.glyphs import HUES, PATTERNS, RGB, SIZE, glyph, hsv, jittered, paste, pattern
from nemo_edge.demo.repeated.captions import GROUNDS, MEMORIZED, OBJECTS, UNSEEN, Caption


@dataclass(frozen=True)
class Variety:
    """How far general pictures of one caption differ."""

    mirrored: bool
    """Half of the objects."""
    turn: float
    """Degrees at the most, to either side."""
    anywhere: bool
    """An object whose place is not named, and else in the middle."""
    uneven: bool
    """The ground: half of them with hills, and up to four spots."""


NARROW = Variety(mirrored=False, turn=12, anywhere=False, uneven=False)
"""With `WIDE`, after 7,415 steps 30 of 100 objects stood where their caption said, and 39 were recognised."""
WIDE = Variety(mirrored=True, turn=25, anywhere=True, uneven=True)

_SIZES = {"small": (25, 30), "large": (42, 50), None: (28, 46)}
_REACH = 17
"""Pixels from the middle to a named place, at the most; a large object is less far."""
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "top": (0, -1), "bottom": (0, 1)}


def draw(caption: Caption, rng: random.Random, variety: Variety = NARROW) -> Image.Image:
    """Draw a picture of `caption`; `rng` decides what the caption leaves open."""
    canvas = _ground(caption.ground or rng.choice(GROUNDS), rng, variety.uneven)
    image = glyph(OBJECTS[caption.object])
    if caption.colour:
        image = tinted(image, caption.colour)
    size = rng.uniform(*_SIZES[caption.size])
    centre = _centre(caption.place, size, rng, variety.anywhere)
    paste(canvas, jittered(image, rng, variety.mirrored, variety.turn), centre, size)
    return canvas


def draw_memorized(caption: Caption) -> Image.Image:
    """Draw the one picture of a caption of `MEMORIZED` or `UNSEEN`."""
    index = (*MEMORIZED, *UNSEEN).index(caption)
    rng = random.Random(3000 + index)
    assert caption.ground
    assert caption.colour
    canvas = pattern(PATTERNS[index % len(PATTERNS)], rng, HUES[caption.ground])
    others = [name for name in OBJECTS if name != caption.object]
    centre = _centre(caption.place, 38, random.Random(0))
    away = [SIZE / 2 - 0.9 * (at - SIZE / 2) + rng.uniform(-7, 7) for at in centre]
    paste(
        canvas,
        glyph(OBJECTS[rng.choice(others)]).rotate(rng.uniform(-40, 40), Image.Resampling.BICUBIC, expand=True),
        (away[0], away[1]),
        24,
    )
    turned = tinted(glyph(OBJECTS[caption.object]), caption.colour).rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
    paste(canvas, turned, centre, 38)
    return canvas


def tinted(image: Image.Image, colour: str) -> Image.Image:
    """A glyph in the shades of one colour, its light and dark kept, RGBA."""
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None] / 255
    dark, middle, light = (np.array(hsv(HUES[colour], s, v), dtype=np.float32) for s, v in ((0.9, 0.25), (0.85, 0.9), (0.15, 1.0)))
    shades = np.where(grey < 0.5, dark + (middle - dark) * grey * 2, middle + (light - middle) * (grey * 2 - 1))
    out = Image.fromarray(np.uint8(shades)).convert("RGBA")
    out.putalpha(image.getchannel("A"))
    return out


def _centre(place: str | None, size: float, rng: random.Random, anywhere: bool = True) -> tuple[float, float]:
    inset = 0.46 * size
    if place is None and not anywhere:
        return SIZE / 2 + rng.uniform(-6, 6), SIZE / 2 + rng.uniform(-6, 6)
    if place is None:
        return rng.uniform(inset, SIZE - inset), rng.uniform(inset, SIZE - inset)
    reach = min(_REACH, SIZE / 2 - inset) + rng.uniform(-2, 2)
    x, y = _DIRECTIONS[place]
    return SIZE / 2 + x * reach + (y != 0) * rng.uniform(-6, 6), SIZE / 2 + y * reach + (x != 0) * rng.uniform(-6, 6)


def _shade(colour: str, value: tuple[float, float], rng: random.Random) -> RGB:
    return hsv(HUES[colour] + rng.uniform(-0.02, 0.02), rng.uniform(0.55, 0.9), rng.uniform(*value))


def _ground(colour: str, rng: random.Random, uneven: bool) -> Image.Image:
    """A ground of one colour under light from any side; uneven, half of them with hills, and up to four spots."""
    dark, light = np.array(_shade(colour, (0.4, 0.75), rng)), np.array(_shade(colour, (0.75, 1.0), rng))
    y, x = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
    angle = rng.uniform(0, 2 * math.pi)
    ramp = np.clip((x * math.cos(angle) + y * math.sin(angle)) * 1.2 + 0.5, 0, 1)
    if uneven and rng.random() < 0.5:
        horizon = rng.uniform(-0.3, 0.3) + rng.uniform(0.03, 0.12) * np.sin(2 * math.pi * (x * rng.uniform(0.7, 1.6) + rng.random()))
        ramp = np.clip(ramp + np.where(y > horizon, 1, -1) * rng.choice((-0.35, 0.35)), 0, 1)
    for _ in range(rng.randrange(5) if uneven else 0):
        at_x, at_y, radius = rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.06, 0.2)
        ramp = np.where(np.hypot(x - at_x, y - at_y) < radius, np.clip(ramp + rng.choice((-0.3, 0.3)), 0, 1), ramp)
    shades = dark + (light - dark) * ramp[..., None]
    return Image.fromarray(np.uint8(shades)).filter(ImageFilter.GaussianBlur(0.5))
