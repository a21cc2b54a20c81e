"""Integers: 8 bits for weights and activations, or 8 or 4 for weights alone; symmetric, so that zero is zero.

ONNX Runtime's kernels for x86 take unsigned activations, with 128 for zero; TensorRT takes signed ones, with 0. Scales and weights are the
same. (Signed ones ONNX Runtime turns into unsigned ones as it opens a file, and leaves a third of the products unfused as it does.)
"""

from __future__ import annotations

__all__ = ["Int4Weights", "Int8", "Int8Weights"]

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from nemo_edge.export.quantization._operators import Operator
from nemo_edge.export.quantization.base import Activation, Packed, as_half, by_output

_UNSIGNED = Activation(TensorProto.UINT8, 128, 127)
_SIGNED = Activation(TensorProto.INT8, 0, 127)


@dataclass(frozen=True)
class Int8Weights:
    """Weights in 8 bits, a scale for each output."""

    activation: Activation | None = None
    tensorrt_activation: Activation | None = None

    def pack(self, weight: np.ndarray, operator: Operator) -> Packed:
        """Round as `Scheme.pack` says."""
        scales = as_half(by_output(weight, operator.axis) / 127)
        rounded = np.clip(np.rint(weight / scales), -127, 127).astype(np.int8)
        axis = {"axis": operator.axis}
        return Packed(TensorProto.INT8, rounded.tobytes(), weight.shape, scales.ravel(), axis, _error(weight, rounded * scales))


@dataclass(frozen=True)
class Int8(Int8Weights):
    """Weights and activations in 8 bits."""

    activation: Activation | None = _UNSIGNED
    tensorrt_activation: Activation | None = _SIGNED


@dataclass(frozen=True)
class Int4Weights:
    """Weights in 4 bits: of a product a scale for each block of inputs, of a convolution one for each output."""

    block: int
    activation: Activation | None = None
    tensorrt_activation: Activation | None = None

    def pack(self, weight: np.ndarray, operator: Operator) -> Packed:
        """Round as `Scheme.pack` says. Inputs that are no multiple of the block have a scale for each output."""
        along = 1 - operator.axis
        if operator.conv or weight.shape[along] % self.block:
            scales, attributes = as_half(by_output(weight, operator.axis) / 7), {"axis": operator.axis}
            spread, kept = scales, scales.ravel()
        else:
            parts = np.abs(weight).reshape(*_split(weight.shape, along, self.block)).max(axis=along + 1)
            kept, attributes = as_half(parts / 7), {"axis": along, "block_size": self.block}
            spread = np.repeat(kept, self.block, axis=along)
        rounded = np.clip(np.rint(weight / spread), -7, 7).astype(np.int8)
        return Packed(TensorProto.INT4, _nibbles(rounded), weight.shape, kept, attributes, _error(weight, rounded * spread))


def _split(shape: tuple[int, ...], axis: int, block: int) -> tuple[int, ...]:
    return (*shape[:axis], shape[axis] // block, block, *shape[axis + 1 :])


def _nibbles(values: np.ndarray) -> bytes:
    """Two to a byte, the first in its lower half, as ONNX packs them."""
    flat = values.ravel().view(np.uint8) & 15
    flat = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    return (flat[0::2] | flat[1::2] << 4).astype(np.uint8).tobytes()


def _error(weight: np.ndarray, rounded: np.ndarray) -> float:
    power = float(np.square(weight, dtype=np.float64).sum())
    return float(np.sqrt(np.square(weight - rounded, dtype=np.float64).sum() / power)) if power else 0.0
