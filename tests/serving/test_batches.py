"""Requests in one batch: each has its own answer, and its own error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner, open_runner
from nemo_edge.serving.batches import answer
from nemo_edge.system.errors import InputError


@pytest.fixture(scope="module")
def unet(tiny_bundle: Path) -> Iterator[OnnxRuntimeRunner]:
    with open_runner(tiny_bundle / "unet_masked" / "model.onnx", threads=1) as runner:
        yield runner


def feed(unet: OnnxRuntimeRunner, rows: int, seed: int, size: int = 16) -> dict[str, np.ndarray]:
    rng, width = np.random.default_rng(seed), unet.inputs["value_mask"][1]
    tokens = unet.inputs["encoder_hidden_states"][1:]
    return {
        "sample": rng.standard_normal((rows, 4, size, size), np.float32),
        "timestep": np.full(rows, 500, np.float32),
        "encoder_hidden_states": rng.standard_normal((rows, *tokens), np.float32),
        "value_mask": (rng.random((rows, width)) < 0.5).astype(np.float32),
    }


def test_each_request_gets_what_it_gets_alone(unet: OnnxRuntimeRunner) -> None:
    feeds = [feed(unet, rows, seed, size) for seed, (rows, size) in enumerate([(1, 16), (2, 16), (1, 8), (3, 16)])]
    found = answer(unet, feeds)
    for one, given in zip(found, feeds, strict=True):
        assert isinstance(one, dict)
        expected = unet(given)["out_sample"]
        assert one["out_sample"].shape == expected.shape
        np.testing.assert_allclose(one["out_sample"], expected, atol=1e-5)


def test_a_bad_request_does_not_spoil_the_others(unet: OnnxRuntimeRunner) -> None:
    feeds = [feed(unet, 1, seed) for seed in range(4)]
    feeds[0]["value_mask"][0, 0] = np.nan
    feeds[1]["value_mask"] = feeds[1]["value_mask"][:, 1:]
    feeds[2]["timestep"] = np.zeros(2, np.float32)
    nan, width, rows, good = answer(unet, feeds)
    assert [str(error).partition(":")[0] for error in (nan, rows)] == [
        "value_mask must hold factors from 0 to 1, but has NaN or values outside",
        "the inputs have 1, 2 rows",
    ]
    assert isinstance(width, InputError)
    assert "'value_mask' has shape" in str(width)
    assert isinstance(good, dict)
    np.testing.assert_allclose(good["out_sample"], unet(feeds[3])["out_sample"], atol=1e-5)


def test_what_the_engine_itself_refuses_is_the_error_of_all_it_ran_together(unet: OnnxRuntimeRunner) -> None:
    found = answer(unet, [feed(unet, 1, 0, size=15), feed(unet, 1, 1, size=15), feed(unet, 1, 2)])
    assert [type(one) for one in found] == [InputError, InputError, dict]
