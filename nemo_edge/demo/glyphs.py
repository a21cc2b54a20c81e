"""Glyphs of Noto Color Emoji and the grounds they are pasted on: what the pictures of both checkpoints are made of.

Knows shapes and colours, not captions. Needs Debian's `fonts-noto-color-emoji`, to train only.
"""

from __future__ import annotations

__all__ = ["HUES", "PATTERNS", "RGB", "SIZE", "font_path", "glyph", "hsv", "jittered", "paste", "pattern"]

import colorsys
import functools
import math
import random
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

SIZE = 64
"""Height and width of a picture, in pixels."""

RGB = tuple[int, int, int]

HUES = {"red": 0.0, "orange": 0.075, "yellow": 0.15, "green": 0.34, "teal": 0.48, "blue": 0.61, "purple": 0.76, "pink": 0.91}
"""Of the colours that a caption can name, 0 to 1."""

PATTERNS = ("stripes", "checker", "rings", "sunburst", "halves", "dots")

_STRIKE = 109  # the one size of the font's bitmaps


def font_path() -> Path:
    """Return the path of the font, or raise `FileNotFoundError` with what to install."""
    path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: apt-get install fonts-noto-color-emoji (needed to train the demo only)")
    return path


@functools.cache
def glyph(name: str) -> Image.Image:
    """The glyph with this Unicode name, cropped to its ink, RGBA."""
    font = ImageFont.truetype(str(font_path()), _STRIKE)
    canvas = Image.new("RGBA", (_STRIKE * 2, _STRIKE * 2))
    ImageDraw.Draw(canvas).text((20, 20), unicodedata.lookup(name.upper()), font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def hsv(hue: float, saturation: float, value: float) -> RGB:
    """Bytes of a colour of which each part is 0 to 1; a hue goes round."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def jittered(image: Image.Image, rng: random.Random, mirrored: bool = True, turn: float = 25) -> Image.Image:
    """A glyph, half of them mirrored, turned by up to `turn` degrees, its colours a little stronger or weaker."""
    if mirrored and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = image.getchannel("A")
    colours = ImageEnhance.Color(image.convert("RGB")).enhance(rng.uniform(0.7, 1.3))
    colours = ImageEnhance.Brightness(colours).enhance(rng.uniform(0.8, 1.15))
    colours.putalpha(alpha)
    return colours.rotate(rng.uniform(-turn, turn), Image.Resampling.BICUBIC, expand=True)


def paste(canvas: Image.Image, image: Image.Image, centre: tuple[float, float], size: float) -> None:
    """Paste a glyph whose longer side is `size` pixels at `centre`."""
    scale = size / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS)
    canvas.paste(small, (round(centre[0] - small.width / 2), round(centre[1] - small.height / 2)), small)


def pattern(name: str, rng: random.Random, hue: float | None = None) -> Image.Image:
    """A bold background of two colours, the first of them of a hue or of any; drawn four times as large, then reduced."""
    hue = rng.random() if hue is None else hue
    colours = np.array([hsv(hue, 0.8, 0.95), hsv(hue + rng.uniform(0.25, 0.6), 0.75, 0.5)])
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
