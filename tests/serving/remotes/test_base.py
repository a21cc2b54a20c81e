"""A picture is read whatever its file, anything else is refused by what it is, and a busy server is asked again."""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from nemo_edge.serving.remotes import base
from nemo_edge.serving.remotes.base import Busy, Refusal, answered, as_picture, decode_picture, patiently, without_query
from nemo_edge.system.errors import InputError

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


@pytest.mark.parametrize("kind", ["PNG", "PPM", "BMP", "GIF"])
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


@pytest.mark.parametrize("kind", ["TIFF", "TGA", "ICO", "PCX", "SGI"])
def test_a_rare_kind_of_file_is_not_read_of_a_stranger(kind: str) -> None:
    encoded = BytesIO()
    Image.fromarray(PIXELS).save(encoded, format=kind)
    with pytest.raises(InputError, match=r"it is no picture .* of PNG, JPEG, WEBP, PPM, GIF, BMP: take another server"):
        decode_picture(encoded.getvalue(), "it")


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        *((status, Refusal, f"it answered {status}: no$") for status in (400, 422, 451)),
        *(
            (status, Busy, f"it answered {status}: no; ask it later: what was finished is kept")
            for status in (408, 425, 429, 502, 503, 504)
        ),
        *((status, InputError, "a valid token, then run this again: what was finished is kept") for status in (401, 403)),
        (404, InputError, "deployed at this address, then run this again"),
        (405, InputError, "give the address that takes a prompt"),
        *((status, InputError, f"it answered {status}: no; see the log of the server") for status in (402, 409, 413, 500)),
        (0, InputError, "it answered an error: no"),
    ],
)
def test_only_what_is_an_answer_to_this_prompt_is_a_refusal(status: int, kind: type[InputError], said: str) -> None:
    found = answered("it", status, "\n no ")
    assert type(found) is kind
    assert re.search(said, str(found))
    assert len(str(answered("it", status, "x" * 5000))) < 600


def test_a_query_is_not_shown() -> None:
    assert [without_query(f"http://h:1/a{rest}") for rest in ("", "?key=1", "#x", "?a#b?c")] == ["http://h:1/a"] * 4


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
