"""How an exported file agrees with eager: values that are kept, and that need no PyTorch to be read.

Knows neither how a file is made nor how it is compared: `export._component` and `export._verification` do.
"""

from __future__ import annotations

__all__ = ["TOLERANCES", "Agreement", "Dtype", "Exported"]

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

Dtype = Literal["fp32", "fp16", "bf16"]

TOLERANCES: dict[Dtype, float] = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Largest error of a component in ONNX Runtime, relative to the largest value of eager float32's output."""


class Agreement(BaseModel):
    """How far a graph is from eager float32 in one case."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    case: str
    output: str
    largest_error: float
    largest_value: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the error, relative to the largest value, is within the tolerance (NaN is not)."""
        return bool(self.largest_error <= self.tolerance * max(self.largest_value, 1.0))

    @property
    def finite(self) -> bool:
        """Whether the output held neither Inf nor NaN."""
        return bool(np.isfinite(self.largest_error))


class Exported(BaseModel):
    """One ONNX file and how it agrees with eager."""

    model_config = ConfigDict(frozen=True)

    component: str
    model: str
    dtype: Dtype
    opset: int
    agreement: tuple[Agreement, ...]
    write_s: float
    """Seconds of tracing and writing."""
    verify_s: float
    """Seconds of the comparison with eager's answers."""
    note: str = ""
    """Why its type is not the recipe's."""
