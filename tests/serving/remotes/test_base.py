"""A picture is read whatever its file, anything else is refused by what it is, and a busy server is asked again."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nemo_edge.serving.remotes import base
from nemo_edge.serving.remotes.base import Busy, as_picture, decode_picture, patiently
from nemo_edge.system.errors import InputError

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "BMP"])
def test_a_picture_file_is_its_pixels(kind: str) -> None:
    encoded = BytesIO()
    Image.fromarray(PIXELS).save(encoded, format=kind)
    assert np.array_equal(decode_picture(encoded.getvalue(), "it"), PIXELS)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", r"it is no picture \(0 bytes\)"), (b'{"error":\n"no"}', r'\(15 bytes: {"error": "no"}\)'), (b"P6 4 4 255\n", "")],
)
def test_what_is_no_picture_is_shown(content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said or "it is no picture"):
        decode_picture(content, "it")


@pytest.mark.parametrize("shape", [(4, 4, 3), (1, 4, 4, 3), (1, 1, 4, 4, 3)])
def test_an_array_is_a_picture_with_dimensions_of_1_before(shape: tuple[int, ...]) -> None:
    assert np.array_equal(as_picture(PIXELS.reshape(shape), "it"), PIXELS)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (None, "nothing"),
        (PIXELS.astype(np.float32), r"float32 \[4, 4, 3\]"),
        (PIXELS[None].repeat(2, 0), r"uint8 \[2, 4, 4, 3\]"),
        (PIXELS[..., 0], r"uint8 \[4, 4\]"),
        (PIXELS[:0], r"without a pixel \(\[0, 4, 3\]\)"),
    ],
)
def test_any_other_array_is_none(array: np.ndarray | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        as_picture(array, "it")


def test_who_is_busy_is_asked_again_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PAUSES_S", (0.0, 0.0))
    answers: list[Exception | int] = [Busy("later"), Busy("later"), 3, Busy("a"), Busy("b"), Busy("c")]

    def call() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert patiently(call) == 3
    with pytest.raises(Busy, match="c"):
        patiently(call)
