"""E4M3: what comes back is within a sixteenth, and zero is zero."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, numpy_helper

from nemo_edge.export.quantization._operators import Operator
from nemo_edge.export.quantization.floats import Fp8


def test_a_weight_comes_back_within_a_sixteenth_and_zero_is_zero() -> None:
    exact = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    exact[2] = 0
    packed = Fp8().pack(exact, Operator("m", "n", "Conv", "w", 0, "x", "y"))
    tensor = TensorProto(name="w", data_type=packed.onnx_type, dims=packed.shape, raw_data=packed.content)
    back = numpy_helper.to_array(tensor).astype(np.float32) * packed.scales.reshape(-1, 1, 1, 1)
    assert packed.onnx_type == TensorProto.FLOAT8E4M3FN
    assert np.isfinite(back).all()
    assert not back[2].any()
    large = np.abs(exact) > 0.02
    assert (np.abs(back - exact)[large] <= np.abs(exact)[large] / 15.9).all()
    assert 0 < packed.error < 0.04
