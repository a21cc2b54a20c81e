"""ONNX Runtime: opens an ONNX file with one execution provider, and refuses to fall back to another."""

from __future__ import annotations

__all__ = [
    "PROVIDERS",
    "EngineFile",
    "OnnxRuntimeRunner",
    "available",
    "check_provider",
    "compile_engine",
    "describe",
    "heavy_on_cpu",
    "open_engine",
    "open_runner",
    "probe_provider",
    "profile",
]

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from io import StringIO
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemo_edge.backends.base import Operator
from nemo_edge.backends.feeds import check_feed, in_batches, pinned_batch
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.system.environment import int8_products
from nemo_edge.system.errors import BundleError, InputError, MissingDependency, first_line
from nemo_edge.system.files import Inside, write_atomically
from nemo_edge.system.reading import read_bytes

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
"""Recipe name of a provider → ONNX Runtime's name."""

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64, "tensor(int32)": np.int32}
_SILENT = 4
_EXACT = "1"
"""Weights of few bits alone are multiplied as float32."""
_UNKNOWN = "NOT_IMPLEMENTED"
"""In an error: an operator that the provider has for other types only."""
_INTEGERS = {
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QAttention",
    "QGemm",
    "QLinearConv",
    "QLinearMatMul",
}
"""Kinds that multiply integers, most of which it makes of others as it opens a file."""
_HEAVY = {"Attention", "Conv", "Gemm", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "MatMul", "Softmax"}


_Provider = Literal["cpu", "cuda", "tensorrt"]


class EngineFile(BaseModel):
    """How an ONNX file of a bundle is run: what ONNX Runtime needs beside the graph itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    component: str
    backend: Literal["onnxruntime"] = "onnxruntime"
    provider: _Provider
    model: Inside
    """Path of the ONNX file inside the bundle."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    version: str
    inputs: dict[str, tuple[int | str | None, ...]]
    outputs: dict[str, tuple[int | str | None, ...]]


class OnnxRuntimeRunner:
    """Owns one inference session. A graph whose batch is pinned takes any number of rows and runs them in parts.

    `graph` is a changed form of the file at `model`, whose weights stay where they are; `weights` replace those of their names.
    A graph that is not `optimized` is run operator by operator as it is, slowly and in little memory. One that is to run `in_order` keeps
    to that of the file as far as it can, so that what is asked of a tensor right after it is made does not keep it.
    """

    def __init__(
        self,
        model: Path,
        provider: str = "cpu",
        threads: int | None = None,
        *,
        graph: bytes | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
        optimized: bool = True,
        in_order: bool = False,
    ) -> None:
        self._session: ort.InferenceSession | None = _session(model, provider, threads, graph, weights, optimized, in_order=in_order)
        ports = self._session.get_inputs()
        self.inputs = {port.name: tuple(port.shape) for port in ports}
        self._dtypes = {port.name: _DTYPES[port.type] for port in ports}
        self._outputs = [port.name for port in self._session.get_outputs()]
        self._batch = pinned_batch(self.inputs)

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Raises `InputError` as `Runner` says."""
        if self._session is None:
            raise InputError("this runner is closed: open the engine again")
        check_feed(feed, {name: ("batch", *dims[1:]) for name, dims in self.inputs.items()} if self._batch else self.inputs)
        return in_batches(feed, self._batch, self._run) if self._batch else self._run(feed)

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert self._session is not None
        typed = {name: np.ascontiguousarray(feed[name], self._dtypes[name]) for name in self.inputs}
        try:
            values = self._session.run(self._outputs, typed)
        except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in typed.items())
            raise InputError(f"ONNX Runtime cannot run a feed of {shapes}: {first_line(error)}") from error
        return {n: v.astype(np.float32, copy=False) for n, v in zip(self._outputs, values, strict=True)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._session = None


def open_runner(model: Path, provider: str = "cpu", threads: int | None = None) -> OnnxRuntimeRunner:
    """Open an ONNX file. Raises `MissingDependency` when the provider is not there, `InputError` for a bad file."""
    return OnnxRuntimeRunner(model, provider, threads)


def compile_engine(bundle: Path, component: str, model: str, provider: _Provider, threads: int | None) -> EngineFile:
    """Write `engines/<component>.onnxruntime.<provider>.json`, which says how to run the bundle's ONNX file.

    A GPU's provider is tried; on the CPU every file of an export has been run already.
    """
    if provider != "cpu":
        _session(bundle / model, provider, threads)
    graph = open_graph(bundle / model).model.graph
    engine = EngineFile(
        component=component,
        provider=provider,
        model=model,
        threads=threads,
        version=ort.__version__,
        inputs={port.name: _dims(port) for port in graph.input},
        outputs={port.name: _dims(port) for port in graph.output},
    )
    write_atomically(bundle / "engines" / f"{component}.onnxruntime.{provider}.json", engine.model_dump_json(indent=1) + "\n")
    return engine


def _dims(port: onnx.ValueInfoProto) -> tuple[int | str | None, ...]:
    return tuple(dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else None) for dim in port.type.tensor_type.shape.dim)


def open_engine(
    bundle: Path, component: str, provider: str, *, threads: int | None = None, weights: Mapping[str, np.ndarray] | None = None
) -> OnnxRuntimeRunner:
    """Open what `compile_engine` wrote, with its own number of threads or another, and with other `weights` of some names.

    On the CPU a bundle that was built for another backend needs no such file, since each of its ONNX files has been run there.
    Raises `InputError` for an engine that the bundle lacks, `BundleError` for a file that describes none.
    """
    path, model = bundle / "engines" / f"{component}.onnxruntime.{provider}.json", bundle / component / "model.onnx"
    if not path.is_file():
        if provider == "cpu" and model.is_file():
            return OnnxRuntimeRunner(model, provider, threads, weights=weights)
        raise InputError(f"the bundle {bundle} has no {provider} engine of {component}: build it with engine.provider = {provider!r}")
    try:
        engine = EngineFile.model_validate_json(read_bytes(path))
    except ValidationError as error:
        raise BundleError(f"{path} does not describe an engine: build the bundle again") from error
    return OnnxRuntimeRunner(bundle / engine.model, engine.provider, threads or engine.threads, weights=weights)


def profile(
    model: Path, provider: str, threads: int | None, feed: Mapping[str, np.ndarray], runs: int, *, optimized: bool = True
) -> tuple[Operator, ...]:
    """Run an ONNX file so often and return what ONNX Runtime's profiler says of each operator, on the average.

    Operators that are not `optimized` are those of the file. Raises `InputError` and `MissingDependency` as opening it does.
    """
    with tempfile.TemporaryDirectory() as folder:
        session = _session(model, provider, threads, optimized=optimized, profile=Path(folder) / "profile")
        ports = {port.name: _DTYPES[port.type] for port in session.get_inputs()}
        typed = {name: np.ascontiguousarray(feed[name], dtype) for name, dtype in ports.items()}
        for _ in range(runs + 1):
            session.run(None, typed)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    told = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    found: dict[str, list[Any]] = {}
    for event in told:
        found.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    return tuple(_operator(name, calls[1:], runs) for name, calls in found.items())  # the first call is cold


def _operator(name: str, calls: Sequence[Any], runs: int) -> Operator:
    told = calls[0]["args"] if calls else {}
    kind = str(told.get("op_name", ""))
    return Operator(name, kind, sum(call["dur"] for call in calls) / 1e3 / runs, _macs(told), kind in _INTEGERS)


def _macs(told: Mapping[str, Any]) -> int:
    """Of an operator of the file, of the sizes that the profiler tells: those of what it takes and gives."""
    kind, takes, gives = told.get("op_name"), _sizes(told.get("input_type_shape")), _sizes(told.get("output_type_shape"))
    if kind == "Conv":
        return prod(gives[0]) * prod(takes[1][1:])
    if kind in ("MatMul", "Gemm"):
        return prod(gives[0]) * takes[0][-1]
    if kind == "Attention":  # queries by keys, and weights by values
        batch, heads, queries, width = takes[0] if len(takes[0]) == 4 else (takes[0][0], 1, *takes[0][1:])
        return batch * heads * queries * takes[1][-2] * (width + takes[2][-1])
    return 0


def _sizes(told: Sequence[Mapping[str, Sequence[int]]] | None) -> list[list[int]]:
    return [list(shape) for port in told or () for shape in port.values()]


def available() -> tuple[str, ...]:
    """The providers this build of ONNX Runtime names (a GPU provider may still lack its libraries)."""
    return tuple(name for name, full in PROVIDERS.items() if full in ort.get_available_providers())


def check_provider(provider: str) -> None:
    """Raise `MissingDependency` unless this build of ONNX Runtime has the provider."""
    if provider not in available():
        raise MissingDependency(
            f"this ONNX Runtime ({ort.__version__}) has no {PROVIDERS[provider]}: install onnxruntime-gpu, or set engine.provider to "
            f"one of {', '.join(available())}"
        )


def probe_provider(provider: str) -> None:
    """Raise `MissingDependency` unless the provider runs here, by opening a graph of one multiplication with it."""
    check_provider(provider)
    if provider == "cpu":
        return
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"])], "probe", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a-multiplication.onnx"
        path.write_bytes(model.SerializeToString())
        _session(path, provider, None)


def describe() -> dict[str, Any]:
    """Version and providers, for provenance."""
    return {"backend": "onnxruntime", "version": ort.__version__, "providers": available()}


def _session(
    model: Path,
    provider: str,
    threads: int | None,
    graph: bytes | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
    optimized: bool = True,
    profile: Path | None = None,
    in_order: bool = False,
) -> ort.InferenceSession:
    check_provider(provider)
    wanted = PROVIDERS[provider]
    options = _options(model, provider, threads, optimized)
    if in_order:
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if provider != "cpu":
        ort.set_default_logger_severity(_SILENT)  # a provider's library that is missing is told by the error below
    try:
        with redirect_stdout(StringIO()):  # where it tells that it falls back to another provider, which is refused below
            content = _with_weights(model, graph, weights) if weights else graph
            session = ort.InferenceSession(content or str(model), options, providers=[wanted])
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        first = first_line(error)
        if provider != "cpu":
            raise MissingDependency(
                f"{wanted} cannot run {model} here: {first}; needs an NVIDIA GPU with CUDA 12 or 13 and cuDNN 9"
            ) from error
        remedy = "; the CPU has no operators for bf16: export.dtype = 'fp16' or 'fp32', or another provider" if _UNKNOWN in first else ""
        raise InputError(f"ONNX Runtime cannot open {model}: {first}{remedy}") from error
    _check_placed(session, wanted, model)
    return session


def _check_placed(session: ort.InferenceSession, wanted: str, model: Path) -> None:
    """Raise `MissingDependency` where another provider would run what `wanted` was asked for, the whole or a heavy part."""
    if wanted not in session.get_providers():
        raise MissingDependency(
            f"{wanted} was asked for, but ONNX Runtime loaded only {', '.join(session.get_providers())}: install its libraries "
            "(CUDA, cuDNN, TensorRT), or set engine.provider to cpu"
        )
    strays = heavy_on_cpu(session) if wanted != PROVIDERS["cpu"] else ()
    if strays:
        raise MissingDependency(
            f"{wanted} of ONNX Runtime {ort.__version__} leaves {', '.join(strays)} of {model} to the CPU: export at opset 18, "
            "or take a newer onnxruntime-gpu"
        )


def _options(model: Path, provider: str, threads: int | None, optimized: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads or 0
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(model.parent))
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", _EXACT)  # else it rounds activations to 8 bits
    if int8_products() in ("overflows", None):  # an x86 before VNNI: with weights of unsigned integers it adds up in 32 bits
        options.add_session_config_entry("session.x64quantprecision", "1")
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.enable_cpu_mem_arena = False
    if provider != "cpu":
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    return options


def _with_weights(model: Path, graph: bytes | None, weights: Mapping[str, np.ndarray]) -> bytes:
    """The graph with other weights inside of it, in place of those of their names.

    `SessionOptions.add_initializer` comes after the graph was optimized, too late for what was folded into other weights by then:
    those of fp16 on the CPU, which are cast to fp32, and those of convolutions.
    """
    changed = onnx.ModelProto.FromString(graph) if graph else onnx.load(str(model), load_external_data=False)
    for tensor in changed.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[tensor.name]), tensor.name))
    serialized: bytes = changed.SerializeToString()
    return serialized


def heavy_on_cpu(session: ort.InferenceSession) -> tuple[str, ...]:
    """Return which kinds of heavy operators a session that recorded its assignment runs on the CPU.

    Operators on shapes are there by design (microsoft/onnxruntime#17930), so that forbidding the CPU altogether refuses
    every graph of free sizes.
    """
    assigned = session.get_provider_graph_assignment_info()
    found = {node.op_type for part in assigned if part.ep_name == PROVIDERS["cpu"] for node in part.get_nodes()}
    return tuple(sorted(found & _HEAVY))
