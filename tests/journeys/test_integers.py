"""The demo's UNet in int8 does nine tenths of its work in kernels of integers, in each runtime: what is rounded and not fused is slower."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from nemo_edge import demo
from nemo_edge.export.production import export_folder, value_layers
from nemo_edge.export.quantization.quantize import Files, find_ranges, quantize_files
from nemo_edge.export.quantization.record import Quantized
from nemo_edge.measure.profile import integer_share
from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.recipe.settings import CheckpointSettings, ExportSettings, SamplingSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.progress import Progress

LEAST = 0.90
SAMPLING = SamplingSettings(scheduler="dpmsolver++", steps=4, guidance=4.0)


class Quiet(Progress):
    """Of nothing that is worth a line."""

    def note(self, message: str) -> None:
        raise AssertionError(message)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("integers")


@pytest.fixture(scope="module")
def record(folder: Path) -> Quantized:
    source = CheckpointSettings(path=str(demo.CHECKPOINT))
    export_folder(source, ExportSettings(variants=("baked",)), None, "paper", folder / "exact", Progress())
    layers = value_layers(source, "paper", Progress())
    files = Files(folder / "exact", ("baked",), ("a mushroom", "a whale"), SAMPLING, 1, layers, "source")
    (folder / "int8").mkdir()
    ranges = find_ranges(files, (), folder / "int8", Progress())
    return quantize_files(files, QuantizationSettings(), ranges, folder / "int8", {}, Quiet())


def feed_of(model: Path) -> dict[str, np.ndarray]:
    rng, ports = np.random.default_rng(0), onnx.load(model, load_external_data=False).graph.input
    shapes = {p.name: [d.dim_value for d in p.type.tensor_type.shape.dim][1:] for p in ports}
    shapes["sample"] = [4, 16, 16]
    feed = {name: rng.standard_normal((2, *shape), np.float32) for name, shape in shapes.items()}
    return {**feed, "timestep": np.full(2, 500, np.float32)}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_nine_tenths_of_the_work_is_in_integers(record: Quantized, folder: Path, backend: str) -> None:
    pytest.importorskip(backend)
    model, engine = folder / "int8" / "unet" / "model.onnx", EngineSettings.model_validate({"backend": backend, "threads": 1})
    share = integer_share(model, engine, feed_of(model))
    assert share is not None
    assert LEAST <= share < 1
    assert integer_share(folder / "exact" / "unet" / "model.onnx", engine, feed_of(model)) == 0


def test_the_record_says_so(record: Quantized) -> None:
    assert LEAST <= record.integers["unet"] < 1


def test_every_operator_that_counts_is_in_the_graph_that_onnx_runtime_makes(record: Quantized, folder: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 4, str(folder / "optimized.onnx")
    ort.InferenceSession(str(folder / "int8" / "unet" / "model.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node]
    assert kinds.count("QLinearConv") + kinds.count("MatMulIntegerToFloat") == len(record.modules)
