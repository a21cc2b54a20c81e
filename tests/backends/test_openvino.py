"""OpenVINO runs one file on the device and in the type asked for, or says why not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from backends.test_onnxruntime import MODEL, feed, save_graph, save_integers
from nemo_edge.backends import openvino
from nemo_edge.backends.openvino import (
    EngineFile,
    OpenVinoRunner,
    available,
    capabilities,
    check_device,
    compile_engine,
    describe,
    open_engine,
    open_runner,
)
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.errors import BundleError, InputError, MissingDependency

ONE = EngineSettings(backend="openvino", threads=1)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_graph(tmp_path / MODEL)
    return tmp_path


def asking(precision: Literal["fp32", "bf16", "fp16"]) -> EngineSettings:
    return EngineSettings(backend="openvino", precision=precision, threads=1)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_floats_are_cast_to_the_graphs_and_come_back_as_float32(tmp_path: Path, kind: int) -> None:
    given = {name: array.astype(np.float64 if name != "ids" else np.int32) for name, array in feed(4).items()}
    with open_runner(save_graph(tmp_path / "model.onnx", kind), ONE) as runner:
        got = runner(given)["out_sample"]
    assert got.dtype == np.float32
    assert np.array_equal(got, feed(4)["sample"] * feed(4)[VALUE_MASK])


def test_feeds_of_any_shape_are_run_by_two_compiled_graphs_at_the_most(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    compile_for = OpenVinoRunner.compile
    monkeypatch.setattr(OpenVinoRunner, "compile", lambda self, shapes=None: compiled.append(shapes) or compile_for(self, shapes))
    with open_runner(bundle / MODEL, ONE) as runner:
        for batch in (2, 3, 5, 2, 3):
            assert np.array_equal(runner(feed(batch))["out_sample"], feed(batch)["sample"] * feed(batch)[VALUE_MASK])
    assert compiled == [{name: list(array.shape) for name, array in feed(2).items()}, None]


def test_results_are_not_overwritten_by_the_next_call(bundle: Path) -> None:
    with open_runner(bundle / MODEL, ONE) as runner:
        first = runner(feed())["out_sample"]
        runner({**feed(), "sample": feed()["sample"] + 1})
    assert np.array_equal(first, feed()["sample"] * feed()[VALUE_MASK])


def test_it_names_its_inputs_and_their_dimensions(bundle: Path) -> None:
    assert open_runner(bundle / MODEL, ONE).inputs == {"sample": (None, 3), VALUE_MASK: (None, 3), "ids": (None,)}


def test_a_pinned_batch_takes_any_number_of_rows(tmp_path: Path) -> None:
    model = onnx.load(str(save_graph(tmp_path / "model.onnx")))
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, str(tmp_path / "model.onnx"))
    with open_runner(tmp_path / "model.onnx", ONE) as runner:
        assert np.array_equal(runner(feed(5))["out_sample"], feed(5)["sample"] * feed(5)[VALUE_MASK])


def test_it_refuses_what_does_not_fit_and_runs_what_does_afterwards(bundle: Path) -> None:
    runner, good = open_runner(bundle / MODEL, ONE), feed()
    for bad, message in (
        ({n: a for n, a in good.items() if n != "ids"}, r"lacks 'ids'"),
        ({**good, VALUE_MASK: good[VALUE_MASK] + 1}, r"factors from 0 to 1"),
        ({**good, VALUE_MASK: feed(5)[VALUE_MASK]}, r"cannot run a feed of sample \[2, 3\], value_mask \[5, 3\], ids \[2\]: \S"),
    ):
        with pytest.raises(InputError, match=message):
            runner(bad)
    assert np.array_equal(runner(good)["out_sample"], good["sample"] * good[VALUE_MASK])


def test_a_runner_is_closed_after_its_context(bundle: Path) -> None:
    with open_runner(bundle / MODEL, ONE) as runner:
        runner(feed())
    with pytest.raises(InputError, match=r"this runner is closed"):
        runner(feed())


@pytest.mark.parametrize("content", [b"", b"not an onnx file", None])
def test_a_broken_or_absent_file_is_refused_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(InputError, match=r"^OpenVINO cannot open .*model\.onnx: \S") as refused:
        open_runner(tmp_path / "model.onnx", ONE)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("device", ["gpu", "npu"])
def test_a_device_that_is_not_there_is_never_the_cpu(bundle: Path, device: Literal["gpu", "npu"]) -> None:
    if device in available():
        pytest.skip(f"this machine has a {device}")
    asked = EngineSettings(backend="openvino", device=device)
    for refused in (lambda: open_runner(bundle / MODEL, asked), lambda: compile_engine(bundle, "unet", MODEL, asked)):
        with pytest.raises(
            MissingDependency, match=rf"OpenVINO finds no {device.upper()} here: install .*, or set engine.device to one of cpu"
        ):
            refused()
    assert not (bundle / "engines").exists()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_type_is_computed_in_or_refused(tmp_path: Path, precision: Literal["bf16", "fp16"], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU lacks it OpenVINO itself computes in float32 without a word."""
    path = save_product(tmp_path / "model.onnx", np.float32)
    x = np.random.default_rng(1).standard_normal((1, 64), np.float32)
    with open_runner(path, ONE) as runner:
        exact = runner({"x": x})["y"]
    if precision in capabilities("cpu"):
        with open_runner(path, asking(precision)) as runner:
            error = np.abs(runner({"x": x})["y"] - exact).max() / np.abs(exact).max()
        assert 1e-5 < error < 0.05
        return
    with pytest.raises(MissingDependency, match=f"the CPU here has no instructions for {precision}: set engine.precision to fp32"):
        open_runner(path, asking(precision))
    monkeypatch.setattr(openvino, "capabilities", lambda device: ("fp32", "bf16", "fp16"))
    with (
        open_runner(path, asking(precision)) as runner,
        pytest.raises(InputError, match=f"in fp32 on CPU, not in {precision}: ask for fp32"),
    ):
        runner({"x": x})


def save_product(path: Path, dtype: type, seed: int = 0) -> Path:
    """x [1, 64] times a matrix."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ports = [helper.make_tensor_value_info(name, kind, [1, 64]) for name in "xy"]
    weight = numpy_helper.from_array(np.random.default_rng(seed).standard_normal((64, 64)).astype(dtype), "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.stem}.data", size_threshold=0)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_other_weights_take_the_place_of_the_file_s(tmp_path: Path, dtype: type) -> None:
    first, second = (save_product(tmp_path / f"{name}.onnx", dtype, seed) for seed, name in enumerate(("first", "second")))
    x = {"x": np.random.default_rng(1).standard_normal((1, 64), np.float32)}
    weight = numpy_helper.to_array(onnx.load(str(second)).graph.initializer[0])
    with open_runner(first, ONE) as runner, open_runner(second, ONE) as other, open_runner(first, ONE, {"w": weight}) as changed:
        former, expected = runner(x)["y"], other(x)["y"]
        assert np.array_equal(changed(x)["y"], expected)
    assert not np.array_equal(former, expected)
    with pytest.raises(InputError, match="has no weights v: build the bundle again"):
        open_runner(first, ONE, {"v": weight})


def test_an_engine_is_written_as_it_is_run_and_opened_again(bundle: Path) -> None:
    engine = compile_engine(bundle, "unet", MODEL, ONE)
    path = bundle / "engines" / "unet.openvino.cpu.json"
    assert EngineFile.model_validate_json(path.read_bytes()) == engine
    assert (engine.device, engine.precision, engine.threads, engine.model) == ("cpu", "fp32", 1, MODEL)
    assert engine.hardware is None  # the same file on another machine
    assert engine.inputs["sample"] == ("batch", 3)
    assert engine.outputs == {"out_sample": ("batch", 3)}
    with open_engine(bundle, "unet", ONE) as runner:
        assert np.array_equal(runner(feed())["out_sample"], feed()["sample"] * feed()[VALUE_MASK])
    path.write_text(json.dumps({**json.loads(path.read_text()), "surprise": 1}))
    with pytest.raises(BundleError, match="does not describe an engine: build the bundle again"):
        open_engine(bundle, "unet", ONE)


def test_a_bundle_of_another_backend_is_run_by_its_onnx_files(bundle: Path) -> None:
    with open_engine(bundle, "unet", ONE) as runner:
        assert runner(feed())["out_sample"].shape == (2, 3)
    with pytest.raises(InputError, match="has no vae_decoder: build it with"):
        open_engine(bundle, "vae_decoder", ONE)


def test_no_telemetry_is_loaded_and_no_process_begun(bundle: Path) -> None:
    """Where a graph is read: OpenVINO's own would fork one that tells of it."""
    code = (
        "import multiprocessing, sys; from pathlib import Path; from nemo_edge.backends import onnxfiles\n"
        "from nemo_edge.recipe.targets import EngineSettings\n"
        "onnxfiles.open_runner(Path(sys.argv[1]), EngineSettings(backend='openvino'))\n"
        "print([name for name, module in sys.modules.items() if name.startswith('openvino_telemetry') and module], "
        "multiprocessing.active_children())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle / MODEL)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] []"


def test_it_describes_itself_and_is_missed_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "cpu" in available()
    told = describe(ONE)
    assert (told["backend"], told["device"], told["precision"]) == ("openvino", "cpu", "fp32")
    assert told["version"][:1].isdigit()
    assert "-" not in told["version"]
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingDependency, match=r"OpenVINO cannot be imported \(.*\): pip install 'nemo-edge\[openvino\]'"):
        check_device(ONE)


def test_integers_whose_sums_overflow_are_refused_and_floats_are_not(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "int8_products", lambda: "overflows")
    model = save_integers(tmp_path / "model.onnx")
    with pytest.raises(MissingDependency, match=r"model\.onnx: OpenVINO adds up .* in 16 bits on a CPU without VNNI") as error:
        open_runner(model, ONE)
    assert "\n" not in str(error.value)
    open_runner(bundle / MODEL, ONE)
    monkeypatch.setattr(openvino, "int8_products", lambda: "slow")
    open_runner(model, ONE)
