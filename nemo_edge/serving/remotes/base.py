"""What every remote pipeline is: called with a prompt and a seed it gives a picture, and it says who it is.

Knows pictures and refusals; no protocol. A picture is bytes [H, W, 3].
"""

from __future__ import annotations

__all__ = [
    "KEPT",
    "LARGEST_BYTES",
    "SAID",
    "Busy",
    "Identity",
    "Refusal",
    "Remote",
    "answered",
    "as_picture",
    "decode_picture",
    "patiently",
    "without_query",
]

import re
import time
from collections.abc import Callable, Mapping
from io import BytesIO
from types import TracebackType
from typing import Literal, Protocol, Self, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from nemo_edge.system.errors import InputError

LARGEST_BYTES = 256 << 20
"""Of an answer; what is longer is not read."""
KEPT = "what was finished is kept"
SAID = 300
"""Letters that are shown of what a server said."""
_REFUSED = (400, 422, 451)
"""Statuses that are an answer to this prompt; any other says nothing of it, and must not be kept as what it gave."""
_BUSY = (408, 425, 429, 502, 503, 504)
_KNOWN_BY = f"let it know you, by --command with a program of yours that asks it with a valid token, then run this again: {KEPT}"
_REMEDIES = {
    401: _KNOWN_BY,
    403: _KNOWN_BY,
    404: f"see whether what draws is (still) deployed at this address, then run this again: {KEPT}",
    405: "give the address that takes a prompt, or --command with a program of yours that asks it",
}
_PAUSES_S = (1.0, 4.0, 16.0)
"""What is waited before a server that is busy is asked once more."""
_FORMATS = ("PNG", "JPEG", "WEBP", "PPM", "GIF", "BMP")
"""That are read of a stranger's pictures; the rarer ones are code that few have looked at."""
_TAKEN = "take another server, or --command with a program of yours that asks it"
_T = TypeVar("_T")


class Identity(BaseModel):
    """Who was asked, as far as it says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["triton", "ray", "command"]
    """What it speaks: the KServe protocol V2, JSON for a picture, or a command line."""
    address: str
    """Its URL without its query, which may hold a key, or the command."""
    model: str = ""
    version: str = ""
    """Of the model, as the server tells it; of a command the sha256 of its program."""
    told: Mapping[str, str] = {}
    """What else it says of itself; of a command the sha256 of each argument that is a file or a model's folder."""


class Refusal(InputError):
    """A server's answer that it draws no picture of this prompt; it may draw the next."""


class Busy(InputError):
    """A server that has no time now, or was lost on the way."""


class Remote(Protocol):
    """Draws what it is asked for."""

    identity: Identity

    def __call__(self, prompt: str, seed: int) -> np.ndarray:
        """Return a picture. Raises `Refusal`, and `InputError` for anything else that is none."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


def decode_picture(content: bytes, what: str) -> np.ndarray:
    """Return the first frame of a picture file of a usual kind; `what` says in a complaint whose it is. Raises `InputError` for anything
    else."""
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{what} is no picture ({len(content)} bytes{_beginning(content)}) of {', '.join(_FORMATS)}: {_TAKEN}") from error


def as_picture(array: np.ndarray | None, what: str) -> np.ndarray:
    """Return the picture of an array that may have a dimension of 1 before the others. Raises `InputError` for anything else."""
    if array is None or array.dtype != np.uint8 or array.ndim < 3 or array.shape[-1] != 3 or array.size != np.prod(array.shape[-3:]):
        found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
        raise InputError(f"{what} is no picture ({found}, expected uint8 [1, height, width, 3]): {_TAKEN}")
    if 0 in array.shape:
        raise InputError(f"{what} is a picture without a pixel ({list(array.shape)}): {_TAKEN}")
    return np.array(array.reshape(array.shape[-3:]))


def patiently(call: Callable[[], _T]) -> _T:
    """Return what a call gives; one that raises `Busy` is made again after a pause, three times."""
    for pause_s in _PAUSES_S:
        try:
            return call()
        except Busy:
            time.sleep(pause_s)
    return call()


def answered(who: str, status: int, said: str) -> InputError:
    """Return the error of an answer that is no picture, by its HTTP status (0: none is known): `Refusal` of this prompt, `Busy`, or one
    that ends an audit with its remedy."""
    words = " ".join(said.split())[:SAID]
    what = f"{who} answered {status or 'an error'}{f': {words}' if words else ''}"
    if status in _BUSY:
        return Busy(f"{what}; ask it later: {KEPT}")
    if status in _REFUSED:
        return Refusal(what)
    return InputError(f"{what}; {_REMEDIES.get(status, 'see the log of the server')}")


def without_query(url: str) -> str:
    """Return the part of a URL that may be shown and kept: a query may hold a key."""
    return re.split("[?#]", url, maxsplit=1)[0]


def _beginning(content: bytes) -> str:
    """The first letters of an answer in words."""
    text = " ".join(content[:60].decode(errors="replace").split())
    return f": {text}" if text.isprintable() and text else ""
