"""The file that tells a folder of random weights of ours from a checkpoint that was trained.

Knows the file alone: neither how such weights are made nor which architectures there are.
"""

from __future__ import annotations

__all__ = ["MARKER", "Dtype", "RandomWeights", "is_random", "read_marker"]

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.system.errors import InputError
from nemo_edge.system.reading import expanded, read_bytes

MARKER = "random_weights.json"
"""Its name."""

Dtype = Literal["fp32", "fp16"]


class RandomWeights(BaseModel):
    """What a folder of random weights was made from; the same values give the same weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    seed: int
    dtype: Dtype
    architecture: str
    """sha256 of all its configurations."""
    versions: dict[str, str]

    def matches(self, other: RandomWeights | None) -> bool:
        """Whether the weights are the same, whatever versions wrote them."""
        return other is not None and self.model_copy(update={"versions": other.versions}) == other


def is_random(path: str | Path) -> str | None:
    """Return the name of the architecture if a checkpoint folder carries random weights of ours, else nothing."""
    found = read_marker(expanded(path))
    return found.name if found else None


def read_marker(folder: Path) -> RandomWeights | None:
    """Return what the random weights of a folder were made from; None where there is no such file, or it is none of ours."""
    try:
        return RandomWeights.model_validate_json(read_bytes(folder / MARKER))
    except (InputError, ValidationError):
        return None
