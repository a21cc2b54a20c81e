"""Training pictures as they lie on disk: every way that training may have read them, and what is no picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.measure.mitigation import shown
from nemo_edge.measure.readings import WHOLE, load_readings
from nemo_edge.measure.replication import Training, load_picture
from nemo_edge.system.errors import InputError

SIZE = (32, 32)


def scene(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours, so that a scaled picture is itself."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def trained(image: Image.Image, side: int = 32) -> np.ndarray:
    """What trainings make of a picture: the shorter side scaled, the centre cut out."""
    scale = side / min(image.size)
    scaled = image.convert("RGB").resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (scaled.width - side) // 2, (scaled.height - side) // 2
    return np.asarray(scaled.crop((left, top, left + side, top + side)))


def judged(path: Path, copy: np.ndarray) -> str:
    """The reading by which three pictures are copies, at a threshold that no other picture passes."""
    view = shown(np.stack([copy] * 3), 0, Training.of([load_readings(path, SIZE)], SIZE), 0.1)
    return view.reading if view.copies == 3 else f"{view.copies} copies"


@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (200, 64)])
def test_a_picture_that_is_not_square_is_a_copy_as_training_cuts_it(tmp_path: Path, shape: tuple[int, int]) -> None:
    image = scene(*shape)
    image.save(tmp_path / "x.png")
    assert judged(tmp_path / "x.png", trained(image)) == "centre crop"
    assert judged(tmp_path / "x.png", np.asarray(image.resize(SIZE))) == "squashed"
    assert judged(tmp_path / "x.png", trained(image.crop((0, 0, 64, 64)))) == "crop at the top left"
    assert judged(tmp_path / "x.png", trained(image.crop((shape[0] - 64, shape[1] - 64, *shape)))) == "crop at the bottom right"
    assert judged(tmp_path / "x.png", trained(scene(64, 64, seed=1))) == "0 copies"


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_picture_is_read_upright_and_as_it_is_stored(tmp_path: Path, orientation: int) -> None:
    image, exif = scene(64, 64), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.jpg", exif=exif, quality=95)
    turn = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]  # the places in Image.Transpose
    assert judged(tmp_path / "x.jpg", trained(image.transpose(Image.Transpose((0, 1, 2, 3, 4, 5, 6)[turn])))) == WHOLE
    assert judged(tmp_path / "x.jpg", trained(image)) == "whole, as stored"


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_clear_is_white_or_black_or_the_colour_under_it(tmp_path: Path, mode: str) -> None:
    colours = Image.new("RGBA", (64, 64), (90, 90, 90, 255))
    colours.paste((200, 200, 200, 0), (32, 0, 64, 64))
    colours.convert(mode).save(tmp_path / "x.png")
    halves = {name: read[16, 24:].tolist() for name, read in load_readings(tmp_path / "x.png", SIZE).items()}
    assert halves[WHOLE] == [[255] * 3] * 8
    assert halves["whole, on black"] == [[0] * 3] * 8
    assert mode == "P" or halves["whole, transparency ignored"] == [[200] * 3] * 8


def test_an_alpha_without_anything_clear_and_a_plain_picture_have_one_reading(tmp_path: Path) -> None:
    for mode in ("RGB", "RGBA"):
        scene(64, 64).convert(mode).save(tmp_path / "x.png")
        assert list(load_readings(tmp_path / "x.png", SIZE)) == [WHOLE]


@pytest.mark.parametrize(("mode", "ending"), [("L", "png"), ("1", "png"), ("P", "gif"), ("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "jpg")])
def test_other_kinds_of_pixels_are_colours(tmp_path: Path, mode: str, ending: str) -> None:
    image = Image.new("RGB", (64, 64), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 64, 32))
    image.convert(mode).save(tmp_path / f"x.{ending}")
    read = load_picture(tmp_path / f"x.{ending}", SIZE)
    assert read.shape == (32, 32, 3)
    assert read[4].max() < 50
    assert read[28].min() > 250


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_grey_of_16_bits_keeps_its_levels(tmp_path: Path, ending: str) -> None:
    levels = np.full((64, 64), 0x8000, np.uint16)
    levels[:32] = 0x0300
    Image.fromarray(levels).save(tmp_path / f"x.{ending}")
    read = load_picture(tmp_path / f"x.{ending}", SIZE)
    assert (read[4, 4].tolist(), read[28, 28].tolist()) == ([3] * 3, [128] * 3)


def test_of_a_moving_picture_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [scene(64, 64, seed) for seed in range(3)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert judged(tmp_path / "x.webp", trained(frames[0])) == WHOLE
    assert judged(tmp_path / "x.webp", trained(frames[1])) == "0 copies"


def test_what_is_no_picture_of_bytes_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x\.tif has pixels of 32 bits, whose range is unknown: save it with 8 or 16 bits"):
        load_readings(tmp_path / "x.tif", SIZE)
    scene(64, 64).save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:99])
    with pytest.raises(InputError, match=r"x\.png cannot be read as an image"):
        load_readings(tmp_path / "x.png", SIZE)
