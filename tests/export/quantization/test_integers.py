"""Integers: what a file gets is what onnx reads out of it, zero is zero, and no error is larger than half a step."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from nemo_edge.export.quantization._operators import Operator
from nemo_edge.export.quantization.base import SMALLEST_SCALE, Packed, Scheme
from nemo_edge.export.quantization.integers import Int4Weights, Int8, Int8Weights


def operator(kind: Literal["Conv", "MatMul", "Gemm"], axis: int) -> Operator:
    return Operator("m", "n", kind, "w", axis, "x", "y")


CONV, PRODUCT = operator("Conv", 0), operator("MatMul", 1)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32) * 0.02


def read(packed: Packed) -> np.ndarray:
    """The integers as onnx unpacks them."""
    tensor = TensorProto(name="w", data_type=packed.onnx_type, dims=packed.shape, raw_data=packed.content)
    return numpy_helper.to_array(tensor).astype(np.float32)


def spread(packed: Packed) -> np.ndarray:
    """The scales in the shape of the weight, as `DequantizeLinear` has it."""
    axis, block = packed.attributes["axis"], packed.attributes.get("block_size")
    if block:
        return np.repeat(packed.scales, block, axis=axis)
    return packed.scales.reshape([-1 if a == axis else 1 for a in range(len(packed.shape))])


CASES: list[tuple[Scheme, Operator, tuple[int, ...], int]] = [
    (Int8Weights(), CONV, (6, 4, 3, 3), 127),
    (Int8(), PRODUCT, (32, 5), 127),
    (Int8(), operator("Gemm", 0), (5, 32), 127),
    (Int4Weights(16), PRODUCT, (32, 5), 7),
    (Int4Weights(16), operator("Gemm", 0), (5, 32), 7),
    (Int4Weights(16), PRODUCT, (33, 5), 7),
    (Int4Weights(16), CONV, (5, 3, 3, 3), 7),
]


@pytest.mark.parametrize(("scheme", "operator", "shape", "levels"), CASES)
def test_a_weight_comes_back_within_half_a_step(scheme: Scheme, operator: Operator, shape: tuple[int, ...], levels: int) -> None:
    exact = weight(*shape)
    packed = scheme.pack(exact, operator)
    integers, scales = read(packed), spread(packed)
    assert integers.shape == shape
    assert np.abs(integers).max() == levels
    assert (np.abs(exact - integers * scales) <= scales * 0.5 * 1.001).all()
    assert packed.error == pytest.approx(np.sqrt(np.square(exact - integers * scales).sum() / np.square(exact).sum()), rel=1e-3)


@pytest.mark.parametrize(("scheme", "operator", "shape", "levels"), CASES)
def test_scales_are_float16s_and_zero_outputs_stay_zero(scheme: Scheme, operator: Operator, shape: tuple[int, ...], levels: int) -> None:
    exact = weight(*shape)
    exact[tuple(1 if axis == operator.axis else slice(None) for axis in range(len(shape)))] = 0
    packed = scheme.pack(exact, operator)
    assert not read(packed).take(1, axis=operator.axis).any()
    assert (packed.scales.astype(np.float16).astype(np.float32) == packed.scales).all()
    assert packed.scales.min() == SMALLEST_SCALE > 6e-8


def test_a_weight_of_zeros_and_one_of_tiny_numbers_have_scales() -> None:
    for exact in (np.zeros((4, 2), np.float32), np.full((4, 2), 1e-30, np.float32)):
        packed = Int8().pack(exact, PRODUCT)
        assert not read(packed).any()
        assert (packed.scales == np.float32(SMALLEST_SCALE)).all()


def test_blocks_have_a_scale_each_where_the_inputs_are_a_multiple_of_them() -> None:
    packed = Int4Weights(16).pack(weight(32, 5), PRODUCT)
    assert (packed.scales.shape, packed.attributes) == ((2, 5), {"axis": 0, "block_size": 16})
    assert Int4Weights(16).pack(weight(33, 5), PRODUCT).attributes == {"axis": 1}


def test_activations_are_of_one_scale_signed_or_not() -> None:
    unsigned, signed = Int8().activation, Int8().tensorrt_activation
    assert unsigned is not None
    assert signed is not None
    assert (unsigned.onnx_type, unsigned.zero, signed.onnx_type, signed.zero) == (TensorProto.UINT8, 128, TensorProto.INT8, 0)
    assert unsigned.levels == signed.levels
    assert onnx.helper.tensor_dtype_to_np_dtype(unsigned.onnx_type) == np.uint8
