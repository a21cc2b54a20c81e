"""A quantized graph runs on integers in ONNX Runtime and OpenVINO, and the rest of it is as it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.export.quantization._operators import Operator, operators
from nemo_edge.export.quantization._rewriting import DATA, Chosen, rewrite
from nemo_edge.export.quantization.base import Scheme
from nemo_edge.export.quantization.integers import Int4Weights, Int8, Int8Weights
from nemo_edge.graph.onnxfile import Graph, open_graph
from nemo_edge.graph.valueweights import open_value_weights
from nemo_edge.model.neurons import NeuronSet

LIMIT = 6.0
"""Where the ranges of toy activations, which are normalized, end."""


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Graph:
    return open_graph(tiny_bundle / "unet_masked" / "model.onnx")


def quantized(graph: Graph, scheme: Scheme, folder: Path) -> tuple[Path, list[Operator]]:
    found, _ = operators(graph, ())
    limit = LIMIT if scheme.activation else None
    chosen = [Chosen(o, limit, limit if o.conv else None) for o in found]
    folder.mkdir(exist_ok=True)
    errors = rewrite(graph, chosen, scheme, scheme.activation, folder, {"quantization": "it"})
    assert set(errors) == {o.module for o in found}
    return folder / "model.onnx", found


def feed_of(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    with OnnxRuntimeRunner(path) as runner:
        shapes = {
            name: [d if isinstance(d, int) else 2 if axis == 0 else 8 for axis, d in enumerate(s)] for name, s in runner.inputs.items()
        }
    feed = {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    return {**feed, "timestep": np.full(2, 500, np.float32), "value_mask": np.ones(shapes["value_mask"], np.float32)}


def differs(exact: Path, other: Path, feed: dict[str, np.ndarray]) -> float:
    with OnnxRuntimeRunner(exact) as one, OnnxRuntimeRunner(other) as two:
        (expected,), (got,) = one(feed).values(), two(feed).values()
    return float(np.sqrt(np.square(got - expected).mean() / np.square(expected).mean()))


@pytest.mark.parametrize(("scheme", "limit"), [(Int8(), 0.15), (Int8Weights(), 0.02), (Int4Weights(16), 0.3)])
def test_a_quantized_file_says_nearly_the_same(graph: Graph, scheme: Scheme, limit: float, tmp_path: Path) -> None:
    path, _ = quantized(graph, scheme, tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    assert 0 < differs(graph.path, path, feed_of(path)) < limit


def test_every_operator_that_is_quantized_runs_on_integers_in_onnx_runtime(graph: Graph, tmp_path: Path) -> None:
    path, found = quantized(graph, Int8(), tmp_path)
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(tmp_path / "optimized.onnx")
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node)
    wanted = Counter(o.kind for o in found)
    assert (kinds["QLinearConv"], kinds["MatMulIntegerToFloat"]) == (wanted["Conv"], wanted["MatMul"])


def test_and_in_openvino(graph: Graph, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    path, found = quantized(graph, Int8(), tmp_path)
    model = openvino.Core().compile_model(str(path), "CPU")
    told = [operator.get_rt_info() for operator in model.get_runtime_model().get_ordered_ops()]
    kinds = Counter(str(info["layerType"].astype(str)) for info in told if "i8" in str(info["primitiveType"].astype(str)).lower())
    wanted = Counter(o.kind for o in found)
    assert kinds["Convolution"] >= wanted["Conv"]
    assert kinds["FullyConnected"] >= wanted["MatMul"]


def test_value_layers_stay_as_they_are_and_a_masked_one_is_silent(graph: Graph, tiny_bundle: Path, tmp_path: Path) -> None:
    path, _ = quantized(graph, Int8(), tmp_path)
    layers = NeuronSet.load(tiny_bundle / "neurons.json").layers
    before, after = open_value_weights(graph, layers), open_value_weights(open_graph(path), layers)
    assert before.values.keys() == after.values.keys()
    for name, rows in before.values.items():
        np.testing.assert_array_equal(rows, after.values[name])


def test_a_baked_row_is_zero_to_the_bit_in_a_quantized_file(tiny_bundle: Path, tmp_path: Path) -> None:
    path, _ = quantized(open_graph(tiny_bundle / "unet" / "model.onnx"), Int8(), tmp_path)
    neurons = NeuronSet.load(tiny_bundle / "neurons.json")
    values = open_value_weights(open_graph(path), neurons.layers).values
    silenced = [(layer.name, row) for layer, rows in neurons.items() for row in rows]
    assert silenced
    for name, row in silenced:
        assert not values[f"{name}.weight"][row].any()


def test_the_file_is_a_quarter_and_its_weights_lie_beside_it(graph: Graph, tmp_path: Path) -> None:
    path, found = quantized(graph, Int8Weights(), tmp_path)
    written = open_graph(path)
    assert {p.name for p in written.external_files()} == {DATA}
    for o in found:
        (before,), (after,) = graph.read([o.weight]).values(), written.read([o.weight]).values()
        assert (after.dtype, after.shape) == (np.int8, before.shape)
    assert written.check_files() is None
    assert {entry.key: entry.value for entry in written.model.metadata_props}["nemo_edge.quantization"] == "it"


def test_the_same_file_gives_the_same_bytes(graph: Graph, tmp_path: Path) -> None:
    paths = [quantized(graph, Int8(), tmp_path / name)[0] for name in "ab"]
    for name in ("model.onnx", DATA):
        assert paths[0].with_name(name).read_bytes() == paths[1].with_name(name).read_bytes()


def test_what_rounds_is_of_the_module_that_is_rounded(graph: Graph, tmp_path: Path) -> None:
    path, found = quantized(graph, Int8(), tmp_path)
    modules = open_graph(path).modules()
    assert modules.keys() == graph.modules().keys()
    conv = next(o for o in found if o.conv)
    assert modules[conv.module].operator == "DequantizeLinear"
    assert modules[conv.module].tensor == conv.output
