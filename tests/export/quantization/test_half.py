"""The file for TensorRT: the integers of the one for CPUs, in float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from export.quantization.test_rewriting import LIMIT, feed_of
from nemo_edge.export.quantization._operators import operators
from nemo_edge.export.quantization._rewriting import Chosen, rewrite
from nemo_edge.export.quantization.base import Scheme
from nemo_edge.export.quantization.half import is_quantized, write_half
from nemo_edge.export.quantization.integers import Int8, Int8Weights
from nemo_edge.graph.onnxfile import Graph, open_graph


@pytest.fixture(scope="module")
def exact(tiny_bundle: Path) -> Graph:
    return open_graph(tiny_bundle / "unet_masked" / "model.onnx")


def written(exact: Graph, scheme: Scheme, folder: Path) -> tuple[Graph, Graph]:
    limit = LIMIT if scheme.activation else None
    chosen = [Chosen(o, limit, limit if o.conv else None) for o in operators(exact, ())[0]]
    folder.mkdir(exist_ok=True)
    rewrite(exact, chosen, scheme, scheme.activation, folder, {})
    return open_graph(folder / "model.onnx"), open_graph(write_half(folder / "model.onnx", folder / "half"))


@pytest.mark.parametrize("scheme", [Int8(), Int8Weights()])
def test_integers_and_scales_are_the_same(exact: Graph, scheme: Scheme, tmp_path: Path) -> None:
    wide, half = written(exact, scheme, tmp_path)
    assert is_quantized(wide)
    assert is_quantized(half)
    assert not is_quantized(exact)
    weights = [t.name for t in wide.model.graph.initializer if t.data_type == TensorProto.INT8]
    scales = [t.name for t in wide.model.graph.initializer if t.name.endswith("_scale")]
    assert len(weights) > 20
    for name, before, after in zip(weights, wide.read(weights).values(), half.read(weights).values(), strict=True):
        np.testing.assert_array_equal(before, after, err_msg=name)
    for before, after in zip(wide.read(scales).values(), half.read(scales).values(), strict=True):
        assert (before.dtype, after.dtype) == (np.float32, np.float16)
        np.testing.assert_array_equal(before, after.astype(np.float32))


def test_its_activations_are_signed_and_its_time_steps_exact(exact: Graph, tmp_path: Path) -> None:
    wide, half = written(exact, Int8(), tmp_path)
    unsigned = [[t.data_type for t in graph.model.graph.initializer].count(TensorProto.UINT8) for graph in (wide, half)]
    assert unsigned == [1, 0]
    ports = {name: port.dtype for name, port in half.ports()[0].items()}
    assert ports == {name: "float32" if name == "timestep" else "float16" for name in ports}
    assert {port.dtype for port in half.ports()[1].values()} == {"float16"}


def test_it_says_nearly_what_the_file_for_cpus_says(exact: Graph, tmp_path: Path) -> None:
    wide, half = written(exact, Int8(), tmp_path)
    feed = {**feed_of(wide.path), "timestep": np.full(2, 981.25, np.float32)}
    options = ort.SessionOptions()  # as a GPU would; the CPU's optimizations are for float32
    options.log_severity_level, options.graph_optimization_level = 4, ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    (expected,) = ort.InferenceSession(str(wide.path), options).run(None, feed)
    narrow = {name: value if name == "timestep" else value.astype(np.float16) for name, value in feed.items()}
    (got,) = ort.InferenceSession(str(half.path), options).run(None, narrow)
    wrong = np.square(got.astype(np.float32) - expected).mean() / np.square(expected).mean()
    assert np.sqrt(wrong) < 0.15, "an activation at the border of two integers may fall to either side"
