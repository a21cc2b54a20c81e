"""ONNX Runtime runs one file on the provider asked for, or says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from nemo_edge.backends import onnxruntime
from nemo_edge.backends.onnxruntime import (
    EngineFile,
    OnnxRuntimeRunner,
    available,
    compile_engine,
    describe,
    heavy_on_cpu,
    open_engine,
    open_runner,
    probe_provider,
    profile,
)
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.system.errors import BundleError, InputError, MissingDependency

MODEL = "unet/model.onnx"


def save_graph(path: Path, kind: int = TensorProto.FLOAT) -> Path:
    """sample [batch, 3] × value_mask [batch, 3] → out_sample, with ids [batch] that are read and not used."""
    sample = helper.make_tensor_value_info("sample", kind, ["batch", 3])
    mask = helper.make_tensor_value_info(VALUE_MASK, kind, ["batch", 3])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"])
    outs = [helper.make_tensor_value_info("out_sample", kind, ["batch", 3])]
    graph = helper.make_graph([helper.make_node("Mul", ["sample", VALUE_MASK], ["out_sample"])], "times", [sample, mask, ids], outs)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))
    return path


def save_integers(path: Path) -> Path:
    """x [batch, 64], rounded to 8 bits, times weights of 8 bits up to the largest → y [batch, 8]."""
    weights = np.random.default_rng(0).integers(-127, 128, (64, 8)).astype(np.int8)
    kept = {"w": weights, "ws": np.full(8, 0.01, np.float32), "wz": np.zeros(8, np.int8)}
    kept |= {"xs": np.float32(0.02), "xz": np.uint8(128)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="product"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 64), ("y", 8))]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in kept.items()]
    graph = helper.make_graph(nodes, "integers", ports[:1], ports[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    return path


def save_few_bits(path: Path) -> np.ndarray:
    """x [batch, 64] times weights of 4 bits, a scale for each 32 → y [batch, 8]; return the weights as they are in float32."""
    rounded = np.random.default_rng(0).integers(-7, 8, (64, 8))
    scales = np.random.default_rng(1).uniform(0.5, 1, (2, 8)).astype(np.float32)
    weights = helper.make_tensor("w", TensorProto.INT4, rounded.shape, rounded.ravel())
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in (("x", 64), ("y", 8))]
    graph = helper.make_graph(nodes, "few", ports[:1], ports[1:], [weights, numpy_helper.from_array(scales, "ws")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    exact: np.ndarray = rounded * np.repeat(scales, 32, axis=0)
    return exact


def test_weights_of_few_bits_are_multiplied_by_activations_as_they_are(tmp_path: Path) -> None:
    weights = save_few_bits(tmp_path / "model.onnx")
    x = np.random.default_rng(2).standard_normal((4, 64)).astype(np.float32)
    x[:, ::32] = 1000  # beside which nothing else is left of a block in 8 bits
    with open_runner(tmp_path / "model.onnx") as runner:
        np.testing.assert_allclose(runner({"x": x})["y"], x @ weights, rtol=1e-5, atol=1e-2)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_graph(tmp_path / MODEL)
    return tmp_path


def feed(batch: int = 2) -> dict[str, np.ndarray]:
    sample = np.arange(3 * batch, dtype=np.float32).reshape(batch, 3)
    return {"sample": sample, VALUE_MASK: np.tile(np.array([1, 0, 0.5], np.float32), (batch, 1)), "ids": np.zeros(batch, np.int64)}


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.FLOAT16])
def test_floats_are_cast_to_the_graphs_and_come_back_as_float32(tmp_path: Path, kind: int) -> None:
    given = {name: array.astype(np.float64 if name != "ids" else np.int32) for name, array in feed(4).items()}
    with open_runner(save_graph(tmp_path / "model.onnx", kind)) as runner:
        got = runner(given)["out_sample"]
    assert got.dtype == np.float32
    assert np.array_equal(got, feed(4)["sample"] * feed(4)[VALUE_MASK])


def test_it_names_its_inputs_and_their_dimensions(bundle: Path) -> None:
    assert open_runner(bundle / MODEL).inputs == {"sample": ("batch", 3), VALUE_MASK: ("batch", 3), "ids": ("batch",)}


def test_it_refuses_what_does_not_fit(bundle: Path) -> None:
    runner, good = open_runner(bundle / MODEL), feed()
    for bad, message in (
        ({n: a for n, a in good.items() if n != "ids"}, r"lacks 'ids'"),
        ({**good, "more": good["ids"]}, r"has no input 'more'"),
        ({**good, "sample": good["sample"][0]}, r"'sample' has shape \[3\]"),
        ({**good, VALUE_MASK: np.ones((2, 4), np.float32)}, r"expected \[batch, 3\]"),
        ({**good, VALUE_MASK: good[VALUE_MASK] + 1}, r"factors from 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            runner(bad)


def test_a_feed_that_the_graph_itself_cannot_run_is_the_callers_error(bundle: Path) -> None:
    runner = open_runner(bundle / MODEL)
    with pytest.raises(InputError, match=r"cannot run a feed of sample \[2, 3\], value_mask \[5, 3\], ids \[2\]"):
        runner({**feed(), VALUE_MASK: feed(5)[VALUE_MASK]})


def test_a_runner_is_closed_after_its_context(bundle: Path) -> None:
    with open_runner(bundle / MODEL) as runner:
        runner(feed())
    with pytest.raises(InputError, match=r"this runner is closed"):
        runner(feed())


def test_a_runner_is_closed_when_an_exception_leaves_its_context(bundle: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_runner(bundle / MODEL) as runner:
        raise ZeroDivisionError
    with pytest.raises(InputError, match=r"this runner is closed"):
        runner(feed())


@pytest.mark.parametrize("content", [b"", b"not an onnx file"])
def test_a_broken_file_is_refused(written: Callable[[str, bytes], Path], content: bytes) -> None:
    with pytest.raises(InputError, match=r"cannot open .*model\.onnx"):
        open_runner(written("model.onnx", content))


def test_a_graph_in_bf16_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot open .*; the CPU has no operators for bf16: export\.dtype = 'fp16' or 'fp32'"):
        open_runner(save_graph(tmp_path / "model.onnx", TensorProto.BFLOAT16))


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot open .*model\.onnx"):
        open_runner(tmp_path / "model.onnx")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_there_is_never_the_cpu(bundle: Path, provider: str) -> None:
    try:
        with open_runner(bundle / MODEL, provider) as runner:
            assert runner(feed())["out_sample"].shape == (2, 3)
            pytest.skip(f"{provider} works on this machine")
    except MissingDependency as error:
        assert "Provider" in str(error)  # noqa: PT017
    with pytest.raises(MissingDependency, match="Provider"):
        probe_provider(provider)
    with pytest.raises(MissingDependency):
        compile_engine(bundle, "unet", MODEL, provider, None)
    assert not (bundle / "engines").exists()


def test_heavy_operators_on_the_cpu_are_named_and_shape_operators_are_not(tmp_path: Path) -> None:
    make = helper.make_node
    nodes = [make("Shape", ["x"], ["s"]), make("MatMul", ["x", "x"], ["p"]), make("Reshape", ["p", "s"], ["y"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy"]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:]), opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    )
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert heavy_on_cpu(session) == ("MatMul",)


def test_an_engine_is_written_and_opened_again(bundle: Path) -> None:
    engine = compile_engine(bundle, "unet", MODEL, "cpu", 1)
    path = bundle / "engines" / "unet.onnxruntime.cpu.json"
    assert EngineFile.model_validate_json(path.read_bytes()) == engine
    assert engine.version == ort.__version__
    assert engine.inputs["sample"] == ("batch", 3)
    assert engine.outputs == {"out_sample": ("batch", 3)}
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    with open_engine(bundle, "unet", "cpu") as runner, open_runner(bundle / MODEL) as direct:
        assert np.array_equal(runner(feed())["out_sample"], direct(feed())["out_sample"])


def test_an_engine_file_with_unknown_fields_is_refused(bundle: Path) -> None:
    fields = json.loads(compile_engine(bundle, "unet", MODEL, "cpu", None).model_dump_json())
    with pytest.raises(ValidationError, match="surprise"):
        EngineFile.model_validate({**fields, "surprise": 1})


@pytest.mark.parametrize(
    "change",
    [{"model": "../model.onnx"}, {"model": "/model.onnx"}, {"model": "n" * 300}, {"provider": "gpu"}, {"threads": 0}, {"threads": 10**30}],
)
def test_an_engine_file_that_names_what_no_bundle_has_is_refused(bundle: Path, change: dict[str, object]) -> None:
    fields = json.loads(compile_engine(bundle, "unet", MODEL, "cpu", None).model_dump_json())
    (bundle / "engines" / "unet.onnxruntime.cpu.json").write_text(json.dumps({**fields, **change}))
    with pytest.raises(BundleError, match="does not describe an engine: build the bundle again"):
        open_engine(bundle, "unet", "cpu")


def test_an_engine_that_was_not_built_is_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match=r"has no cuda engine of unet: build it with engine\.provider = 'cuda'"):
        open_engine(bundle, "unet", "cuda")
    with pytest.raises(InputError, match="has no cpu engine of vae_decoder"):
        open_engine(bundle, "vae_decoder", "cpu")


def test_on_the_cpu_an_onnx_file_is_enough(bundle: Path) -> None:
    with open_engine(bundle, "unet", "cpu") as runner:
        assert "sample" in runner.inputs


def test_it_describes_itself() -> None:
    assert "cpu" in available()
    assert describe() == {"backend": "onnxruntime", "version": ort.__version__, "providers": available()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("operator", ["MatMul", "Conv"])
def test_other_weights_take_the_place_of_the_file_s(tmp_path: Path, dtype: type, operator: str) -> None:
    """Those too that ONNX Runtime changes when it opens a graph: fp16 on the CPU, and a convolution's."""
    shape = (8, 8, 3, 3) if operator == "Conv" else (8, 8)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ports = [helper.make_tensor_value_info(name, kind, [1, 8, 8, 8]) for name in "xy"]
    options = {"pads": [1, 1, 1, 1]} if operator == "Conv" else {}
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    paths = []
    for name, weight in (("first", first), ("second", second)):
        node = helper.make_node(operator, ["x", "w"], ["y"], **options)
        graph = helper.make_graph([node], "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(model, str(paths[-1]), save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    feed = {"x": rng.standard_normal((1, 8, 8, 8), np.float32)}
    with OnnxRuntimeRunner(paths[0], threads=1) as runner:
        former = runner(feed)["y"]
    with OnnxRuntimeRunner(paths[1], threads=1) as runner:
        expected = runner(feed)["y"]
    with OnnxRuntimeRunner(paths[0], threads=1, weights={"w": second}) as runner:
        assert np.array_equal(runner(feed)["y"], expected)
    with OnnxRuntimeRunner(paths[0], threads=1) as runner:
        assert np.array_equal(runner(feed)["y"], former)  # the file is as it was
    assert not np.array_equal(former, expected)


@pytest.mark.parametrize(
    ("kind", "takes", "attributes", "macs"),
    [
        ("Conv", {"x": (2, 3, 8, 8), "w": (5, 3, 3, 3)}, {"pads": [1, 1, 1, 1]}, 2 * 5 * 64 * 27),
        ("Conv", {"x": (1, 4, 8, 8), "w": (4, 2, 3, 3)}, {"pads": [1, 1, 1, 1], "group": 2}, 4 * 64 * 18),
        ("MatMul", {"x": (2, 7, 3), "w": (3, 5)}, {}, 2 * 7 * 3 * 5),
        ("Gemm", {"x": (7, 3), "w": (5, 3)}, {"transB": 1}, 7 * 3 * 5),
        ("Attention", {"x": (2, 4, 6, 8), "k": (2, 4, 10, 8), "v": (2, 4, 10, 8)}, {}, 2 * 4 * 6 * 10 * 16),
    ],
)
def test_a_profile_counts_multiplications(
    tmp_path: Path, kind: str, takes: dict[str, tuple[int, ...]], attributes: dict[str, Any], macs: int
) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in takes.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(kind, list(takes), ["y"], name="the_one", **attributes)], "one", ports, [output])
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), str(path))
    feed = {name: np.ones(dims, np.float32) for name, dims in takes.items()}
    found = {each.name: each for each in profile(path, "cpu", 1, feed, 3, optimized=False)}
    assert found["the_one"].macs == macs
    assert (found["the_one"].kind, found["the_one"].ms > 0) == (kind, True)


def precision_of(options: ort.SessionOptions) -> str:
    try:
        return str(options.get_session_config_entry("session.x64quantprecision"))
    except RuntimeError:  # it was not set
        return ""


@pytest.mark.parametrize(("how", "wide"), [("fast", ""), ("slow", ""), ("overflows", "1"), (None, "1")])
def test_sums_that_would_overflow_are_made_in_32_bits(how: str | None, wide: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ONNX Runtime's own setting for an x86 before VNNI: emulated (Haswell), the largest error falls from an eighth to rounding."""
    x = np.random.default_rng(1).standard_normal((5, 64), np.float32)
    model = save_integers(tmp_path / "model.onnx")
    monkeypatch.setattr(onnxruntime, "int8_products", lambda: how)
    with open_runner(model) as runner:
        assert runner._session is not None
        assert precision_of(runner._session.get_session_options()) == wide
        got = runner({"x": x})["y"]
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}
    rounded = (np.clip(np.rint(x / tensors["xs"]), -128, 127) * tensors["xs"]).astype(np.float32)
    np.testing.assert_allclose(got, rounded @ (tensors["w"] * tensors["ws"]), rtol=1e-5, atol=1e-4)
