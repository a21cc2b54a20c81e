"""What a bundle says of its quantization: what was rounded and how, what was not and why, and what it came to.

Knows neither graphs nor runtimes, so that whoever reads a bundle can read it.
"""

from __future__ import annotations

__all__ = ["ESTIMATED", "RECORD", "Origin", "Quantized", "Rounded"]

from math import hypot
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.system.errors import BundleError
from nemo_edge.system.reading import read_bytes

RECORD = "quantization.json"
ESTIMATED = "rounding is estimated to change it by"
"""How it begins to say, with a number, why a module is kept that suffers too much."""


class Rounded(BaseModel):
    """What rounding alone changes of a module, each relative to its size: roots of mean squares."""

    model_config = ConfigDict(frozen=True)

    weight: float
    input: float = 0.0
    output: float = 0.0

    @property
    def error(self) -> float:
        """All together, as independent errors add up."""
        return hypot(self.weight, self.input, self.output)


class Origin(BaseModel):
    """Where the ranges of activations are from."""

    model_config = ConfigDict(frozen=True)

    prompts: int
    """Whose pictures were drawn."""
    steps: int
    """Of each picture; the UNet was called in all of them."""
    version: str
    """Of the nemo-edge that drew them."""
    file: bool
    """Whether they were read of a file, and not found for this bundle."""


class Quantized(BaseModel):
    """What was quantized in a bundle, how, and what was left as it is."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[1] = 1
    settings: QuantizationSettings
    modules: dict[str, Rounded]
    kept: dict[str, str]
    """Why a module that could be quantized is not."""
    errors: dict[str, float]
    """Of each UNet: by how much what it says on the way to a picture differs from what the file in float32 says to the same, relative to
    that: the root of the mean square."""
    integers: dict[str, float] = {}
    """Of each UNet: the share of its multiplications that ONNX Runtime does in integers, on the CPU that quantized it. Of `int8` alone."""
    sizes_bytes: dict[str, tuple[int, int]] = {}
    """Of each UNet: its file and weights in float32, and quantized."""
    ranges: Origin | None = None
    """None for weights alone."""

    @classmethod
    def read(cls, bundle: Path) -> Self | None:
        """Read a bundle's; None where it has none. Raises `BundleError` for a file that is none."""
        path = bundle / RECORD
        if not path.is_file():
            return None
        try:
            return cls.model_validate_json(read_bytes(path))
        except ValidationError as error:
            raise BundleError(f"{path} does not say what was quantized: build the bundle again") from error
