"""Scales that float16 holds."""

from __future__ import annotations

import numpy as np

from nemo_edge.export.quantization.base import SMALLEST_SCALE, as_half, by_output


def test_a_scale_becomes_the_next_larger_float16() -> None:
    wanted = np.random.default_rng(0).random(10_000) * 3 + SMALLEST_SCALE
    half = as_half(wanted)
    assert (half.astype(np.float16).astype(np.float32) == half).all()
    assert (half >= wanted).all()
    assert (half <= wanted * 1.001 + 2**-24).all()


def test_no_scale_is_too_small_for_float16() -> None:
    assert as_half(np.array([0.0, 1e-30, 6e-8])).tolist() == [SMALLEST_SCALE] * 3


def test_the_largest_weight_of_each_output() -> None:
    weight = np.arange(-12, 12, dtype=np.float32).reshape(2, 3, 4)
    assert by_output(weight, 0).ravel().tolist() == [12, 11]
    assert by_output(weight, 2).shape == (1, 1, 4)
