"""Floats of 8 bits (E4M3), for weights and activations: TensorRT runs them on Ada and Blackwell GPUs."""

from __future__ import annotations

__all__ = ["Fp8"]

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

from nemo_edge.export.quantization._operators import Operator
from nemo_edge.export.quantization.base import Activation, Packed, as_half, by_output

_LARGEST = 448.0
_E4M3 = Activation(TensorProto.FLOAT8E4M3FN, 0, _LARGEST)


@dataclass(frozen=True)
class Fp8:
    """Weights and activations in E4M3, a scale for each output of the weights."""

    activation: Activation | None = _E4M3
    tensorrt_activation: Activation | None = _E4M3

    def pack(self, weight: np.ndarray, operator: Operator) -> Packed:
        """Round as `Scheme.pack` says."""
        scales = as_half(by_output(weight, operator.axis) / _LARGEST)
        rounded = (weight / scales).astype(tensor_dtype_to_np_dtype(TensorProto.FLOAT8E4M3FN))
        back = rounded.astype(np.float32) * scales
        power = float(np.square(weight, dtype=np.float64).sum())
        error = float(np.sqrt(np.square(weight - back, dtype=np.float64).sum() / power)) if power else 0.0
        axis = {"axis": operator.axis}
        return Packed(TensorProto.FLOAT8E4M3FN, rounded.tobytes(), weight.shape, scales.ravel(), axis, error)
