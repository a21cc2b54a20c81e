"""A training picture as it lies on disk, in every way that training may have read it.

Knows pictures only: which way a training read them is not written anywhere, so each is compared and the nearest counts.
"""

from __future__ import annotations

__all__ = ["WHOLE", "load_readings"]

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from nemo_edge.system.errors import InputError
from nemo_edge.system.reading import check_regular

WHOLE = "whole"
"""The reading of a picture that has the shape of what is drawn, and nothing else to choose."""
_CROPS = {"centre crop": (0.5, 0.5), "crop at the top left": (0.0, 0.0), "crop at the bottom right": (1.0, 1.0)}
"""Where what is left of a picture stands after its shorter side is scaled: diffusers' and CompVis' trainings cut at the centre or
anywhere, and Stable Diffusion XL is asked for the crop at the top left."""
_SQUASHED = "squashed"
_DEPTHS = ("PNG", "PPM")
"""Formats whose 32-bit pixels in Pillow are 16-bit ones of the file."""


def load_readings(path: Path, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Read a picture as bytes [H, W, 3] of `size` (height, width): each reading that differs, by its name, the likeliest first.

    Readings are of its shape (centre crop, crops at both ends, squashed), its orientation (upright, and as stored where EXIF turns it)
    and its transparency (on white, on black, ignored). The first frame counts. Raises `InputError` for what is no picture of bytes or
    of 16 bits.
    """
    check_regular(path, "the training picture")
    try:
        with Image.open(path) as image:
            depth16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in _DEPTHS)
            if image.mode in ("I", "F") and not depth16:
                raise InputError(f"the training picture {path} has pixels of 32 bits, whose range is unknown: save it with 8 or 16 bits")
            found: dict[str, np.ndarray] = {}
            for turned, upright in _orientations(image):
                for ground, opaque in _grounds(_from_16_bits(upright) if depth16 else upright):
                    for shape, read in _shapes(opaque, size):
                        if not any(np.array_equal(read, other) for other in found.values()):
                            found[", ".join(filter(None, (shape, turned, ground)))] = read
            return found
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"the training picture {path} cannot be read as an image: {error}") from error


def _orientations(image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """As EXIF turns it, and as it is stored, which img2dataset and many trainings read."""
    image.load()
    turned = ImageOps.exif_transpose(image)
    yield "", turned
    if image.getexif().get(0x0112, 1) != 1:
        yield "as stored", image


def _grounds(image: Image.Image) -> Iterator[tuple[str, Image.Image]]:
    """Without transparency: on white, on black, and with the colours that lie under it, as `convert("RGB")` leaves them."""
    clear = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    layers = image.convert("RGBA") if clear else None
    if layers is None or layers.getchannel("A").getextrema()[0] == 255:
        yield "", (layers or image).convert("RGB")
        return
    for name, level in (("", 255), ("on black", 0)):
        yield name, Image.alpha_composite(Image.new("RGBA", layers.size, (level, level, level, 255)), layers).convert("RGB")
    yield "transparency ignored", layers.convert("RGB")


def _shapes(image: Image.Image, size: tuple[int, int]) -> Iterator[tuple[str, np.ndarray]]:
    height, width = size
    if image.width * height == image.height * width:
        yield WHOLE, np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        return
    for name, place in _CROPS.items():
        yield name, np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC, centering=place))
    yield _SQUASHED, np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8; Pillow would take all above 255 for white."""
    levels = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
