"""What a scheme of quantization is: how weights are rounded, and into what activations are.

Shapes: a weight has its outputs along one axis; scales are one for each of them, or one for each block of inputs.
"""

from __future__ import annotations

__all__ = ["SMALLEST_SCALE", "Activation", "Packed", "Scheme", "as_half", "by_output"]

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from nemo_edge.export.quantization._operators import Operator

SMALLEST_SCALE = 2.0**-20
"""TensorRT takes no scale that is 0, and float16 holds none below 6e-8; from here on it holds them to three percent."""


@dataclass(frozen=True)
class Packed:
    """A rounded weight as a file has it."""

    onnx_type: int
    content: bytes
    shape: tuple[int, ...]
    scales: np.ndarray
    attributes: dict[str, int]
    """Of its `DequantizeLinear`: the axis of its scales, and the size of a block where it has any."""
    error: float
    """The root of the mean square of what rounding changed, relative to the weight's."""


@dataclass(frozen=True)
class Activation:
    """The type that activations are rounded to; a range that ends at x has a scale of x / `levels`."""

    onnx_type: int
    zero: int
    levels: float


class Scheme(Protocol):
    """A way to quantize. Both files of a component, that for CPUs and that for TensorRT, have the same weights and scales."""

    @property
    def activation(self) -> Activation | None:
        """What activations become in the file for CPUs; None where they stay as they are."""
        ...

    @property
    def tensorrt_activation(self) -> Activation | None:
        """What they become in the file for TensorRT."""
        ...

    def pack(self, weight: np.ndarray, operator: Operator) -> Packed:
        """Round the float32 weight of an operator. What is zero stays zero."""
        ...


def as_half(scales: np.ndarray) -> np.ndarray:
    """Return the next larger scales that float16 holds, in float32: of a file in either type they are the same."""
    wanted = np.maximum(scales, SMALLEST_SCALE)
    half = wanted.astype(np.float16)
    larger: np.ndarray = np.where(half.astype(np.float64) < wanted, np.nextafter(half, np.float16(np.inf)), half)
    return larger.astype(np.float32)


def by_output(weight: np.ndarray, axis: int) -> np.ndarray:
    """Return the largest magnitude of each output's weights, in a shape that the weight can be divided by."""
    others = tuple(a for a in range(weight.ndim) if a != axis)
    largest: np.ndarray = np.abs(weight).max(axis=others, keepdims=True)
    return largest
