"""What a client asks of the pipeline: read from the tensors of a request, and checked before any work begins.

No message has the prompt in it, since messages are logged.
"""

from __future__ import annotations

__all__ = ["INPUTS", "LONGEST_PROMPT_BYTES", "MOST_PICTURES", "PictureRequest", "read_json", "read_request"]

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemo_edge.bundle.policies import ALWAYS
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.system.errors import InputError

INPUTS: dict[str, str] = {
    "prompt": "object",
    "negative_prompt": "object",
    "steps": "int32",
    "guidance": "float32",
    "seed": "int64",
    "height": "int32",
    "width": "int32",
    "policy": "object",
}
"""The pipeline's inputs and their types in numpy's words; all but the prompt are optional. Prompt and seed: one a picture."""

LONGEST_PROMPT_BYTES = 64 << 10
MOST_PICTURES = 8
_SETTINGS = ("steps", "guidance", "height", "width", "negative_prompt")
_GREATEST_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class PictureRequest:
    """Pictures to draw, one a prompt and seed."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: SamplingSettings
    policy: str


def read_json(content: bytes) -> dict[str, np.ndarray]:
    """Return the tensors of a request for one picture in JSON, an object of the names of `INPUTS` with one value each.

    Raises `InputError` for anything else; whether the values are in their range is for `read_request` to say.
    """
    try:
        given = _PlainRequest.model_validate_json(content).model_dump(exclude_none=True)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        what = f"{first['loc'][0]}: " if first["loc"] else ""
        raise InputError(f"the request cannot be read: {what}{first['msg']}; it may have {', '.join(INPUTS)}") from error
    return {name: np.array([value], "object" if isinstance(value, str) else None) for name, value in given.items()}


_Whole = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class _PlainRequest(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    prompt: str
    negative_prompt: str | None = None
    steps: _Whole | None = None
    guidance: float | None = None
    seed: _Whole | None = None
    height: _Whole | None = None
    width: _Whole | None = None
    policy: str | None = None


def read_request(tensors: Mapping[str, np.ndarray], defaults: SamplingSettings, policy: str = ALWAYS) -> PictureRequest:
    """Read a request. `tensors` are those that were given, text as UTF-8; `policy` is that of a request that names none.

    Raises `InputError` for no prompt or too many, for text that is too long or not UTF-8, and for settings out of their range.
    """
    if "prompt" not in tensors:
        raise InputError("the request has no prompt: give one, or several for as many pictures")
    prompts = tuple(_text("prompt", value) for value in tensors["prompt"].ravel())
    if not 1 <= len(prompts) <= MOST_PICTURES:
        raise InputError(f"the request has {len(prompts)} prompts: give 1 to {MOST_PICTURES}, and the others in further requests")
    given = {name: _one(name, tensors[name]) for name in (*_SETTINGS, "policy") if name in tensors}
    policy = given.pop("policy", policy)
    return PictureRequest(prompts, _seeds(tensors.get("seed"), len(prompts)), _settings(defaults, given), policy)


def _text(name: str, value: Any) -> str:
    raw = value if isinstance(value, bytes) else str(value).encode()
    if len(raw) > LONGEST_PROMPT_BYTES:
        raise InputError(f"{name} has {len(raw)} bytes: give {LONGEST_PROMPT_BYTES} at the most")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8: send text in that encoding") from error


def _one(name: str, array: np.ndarray) -> Any:
    """The one value of a setting that goes for all pictures of a request."""
    if array.size != 1:
        raise InputError(f"{name} has {array.size} values: give one, which goes for all pictures of the request")
    return _text(name, array.ravel()[0]) if INPUTS[name] == "object" else array.ravel()[0].item()


def _seeds(given: np.ndarray | None, count: int) -> tuple[int, ...]:
    """A seed a picture; of one seed, the next ones too."""
    values = [0] if given is None else [int(seed) for seed in given.ravel()]
    if len(values) not in (1, count):
        raise InputError(f"seed has {len(values)} values for {count} prompts: give one, or one a prompt")
    seeds = tuple(values) if len(values) == count else tuple(range(values[0], values[0] + count))
    if min(seeds) < 0 or max(seeds) > _GREATEST_SEED:
        raise InputError(f"seed {min(seeds) if min(seeds) < 0 else max(seeds)} is out of range: give 0 to {_GREATEST_SEED}")
    return seeds


def _settings(defaults: SamplingSettings, given: Mapping[str, Any]) -> SamplingSettings:
    guidance = given.get("guidance", 0.0)
    if not np.isfinite(guidance):
        raise InputError(f"guidance {guidance} is not finite: give a number from 0 on")
    try:
        return SamplingSettings.model_validate({**defaults.model_dump(), **given})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{first['loc'][0]} {first['input']}: {message[0].lower()}{message[1:]}") from error
