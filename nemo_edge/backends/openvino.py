"""OpenVINO: opens an ONNX file on a CPU, an Intel GPU or an NPU, and computes in the type that was asked for, or refuses.

Without a type OpenVINO takes bfloat16 wherever the CPU has it; here nothing is rounded unless it is asked for. Its telemetry, which tells
Google Analytics of every file that is read, from a process forked for it, is never loaded.
"""

from __future__ import annotations

__all__ = [
    "DEVICES",
    "DTYPES",
    "EngineFile",
    "OpenVinoRunner",
    "available",
    "capabilities",
    "check_device",
    "check_integers",
    "compile_engine",
    "describe",
    "load",
    "open_engine",
    "open_runner",
    "profile",
    "without_telemetry",
]

import sys
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemo_edge.backends._openvinocache import compile_cached, folder_of
from nemo_edge.backends.base import Operator
from nemo_edge.backends.feeds import check_feed, in_batches, pinned_batch
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.environment import cores, int8_products
from nemo_edge.system.errors import BundleError, InputError, MissingDependency, first_line
from nemo_edge.system.files import Inside, write_atomically
from nemo_edge.system.reading import read_bytes

DEVICES = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
"""The recipe's name of a device → OpenVINO's."""

DTYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""The recipe's name of a type → OpenVINO's."""

_Shapes = Mapping[str, list[int]]
"""Of each input."""
_NUMPY = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32}
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")
_INSTALL = "pip install 'nemo-edge[openvino]'"


class EngineFile(BaseModel):
    """How an ONNX file of a bundle is run by OpenVINO."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    component: str
    backend: Literal["openvino"] = "openvino"
    device: Literal["cpu", "gpu", "npu"]
    precision: Literal["fp32", "bf16", "fp16"]
    """What OpenVINO said it computes in when the build opened it."""
    hardware: str | None = None
    """What it said it runs on, in a bundle from before its manifest alone said on which machine it was built."""
    model: Inside
    """Path of the ONNX file inside the bundle."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    version: str
    inputs: dict[str, tuple[int | str | None, ...]]
    outputs: dict[str, tuple[int | str | None, ...]]


class OpenVinoRunner:
    """Owns a graph and what is compiled of it, which one caller uses at a time.

    The shapes of the first feed are compiled for, which is faster than a graph of any shape; those of later feeds share one of
    any shape, so that no more than two are held. A graph whose batch is pinned takes any number of rows and runs them in parts. `weights`
    replace those of their names.
    """

    def __init__(self, model: Path, engine: EngineSettings, weights: Mapping[str, np.ndarray] | None = None) -> None:
        self._model, self._engine, self._lock = model, engine, Lock()
        self._graph: Any = _read(model, weights or {})
        if int8_products() == "overflows" and open_graph(model).rounds:
            check_integers(engine, str(model))
        self._cached = engine.cache and not weights
        self._first: _Shapes | None = None
        self._requests: dict[bool, Any] = {}
        self.inputs = {port.any_name: _dims(port) for port in self._graph.inputs}
        self._dtypes = {port.any_name: _NUMPY[port.element_type.get_type_name()] for port in self._graph.inputs}
        self._outputs = {port.any_name: index for index, port in enumerate(self._graph.outputs)}
        self._batch = pinned_batch(self.inputs)

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Raises `InputError` as `Runner` says."""
        if self._graph is None:
            raise InputError("this runner is closed: open the engine again")
        check_feed(feed, {name: ("batch", *dims[1:]) for name, dims in self.inputs.items()} if self._batch else self.inputs)
        return in_batches(feed, self._batch, self._run) if self._batch else self._run(feed)

    def typed(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return a feed in the types that the graph takes."""
        return {name: np.ascontiguousarray(feed[name], dtype) for name, dtype in self._dtypes.items()}

    def compile(self, shapes: _Shapes | None = None, *, profiled: bool = False) -> Any:
        """Return a request of the graph, compiled for some shapes or for any, and to be `profiled` or not.

        Raises `InputError` where it cannot be.
        """
        graph, core, options = self._graph, _core(), _options(self._engine) | ({"PERF_COUNT": "YES"} if profiled else {})
        if shapes is not None:
            graph = graph.clone()
            graph.reshape(shapes)
        try:
            compiled = compile_cached(
                lambda cache: core.compile_model(graph, DEVICES[self._engine.device], options | cache), *self._cache(options, shapes)
            )
        except RuntimeError as error:
            raise InputError(f"OpenVINO cannot compile {self._model}: {_reason(error)}") from error
        _check_precision(compiled, self._model, self._engine)
        return compiled.create_infer_request()

    def _cache(self, options: Mapping[str, Any], shapes: _Shapes | None) -> tuple[Path | None, int]:
        """The folder of this graph compiled so, where it is to be kept, and the size of its weights in bytes."""
        if not self._cached or "PERF_COUNT" in options:
            return None, 0
        device, (content, size_bytes) = self._engine.device, self._content
        return folder_of([_version(), _hardware(device), device, dict(options), dict(shapes) if shapes else None, content]), size_bytes

    @cached_property
    def _content(self) -> tuple[str, int]:
        """One hash of the file and its weights, and their size in bytes."""
        graph = open_graph(self._model)
        return graph.content_hash(), self._model.stat().st_size + sum(graph.external_files().values())

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        typed = self.typed(feed)
        shapes = {name: list(array.shape) for name, array in typed.items()}
        with self._lock:
            try:
                found = self._request(shapes).infer(typed, share_inputs=True)
            except RuntimeError as error:
                told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
                raise InputError(f"OpenVINO cannot run a feed of {told}: {_reason(error)}") from error
            return {name: np.array(found[index], np.float32) for name, index in self._outputs.items()}

    def _request(self, shapes: _Shapes) -> Any:
        if self._first is None:
            self._requests[True] = self.compile(shapes)
            self._first = shapes
        if shapes != self._first and False not in self._requests:
            self._requests[False] = self.compile()
        return self._requests[shapes == self._first]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._graph = None
        self._requests.clear()


def open_runner(model: Path, engine: EngineSettings, weights: Mapping[str, np.ndarray] | None = None) -> OpenVinoRunner:
    """Open an ONNX file. Raises `MissingDependency` as `check_device`, `InputError` for a bad file."""
    check_device(engine)
    return OpenVinoRunner(model, engine, weights)


def profile(model: Path, engine: EngineSettings, feed: Mapping[str, np.ndarray], runs: int) -> tuple[Operator, ...]:
    """Run an ONNX file so often, compiled for the feed's shapes, and return what OpenVINO says of each operator it ran, on the average.

    Raises as `open_runner`.
    """
    check_device(engine)
    with OpenVinoRunner(model, engine) as runner:
        typed = runner.typed(feed)
        request = runner.compile({name: list(array.shape) for name, array in typed.items()}, profiled=True)
        spent: dict[tuple[str, str, str], float] = {}
        for number in range(runs + 1):
            request.infer(typed, share_inputs=True)
            for each in request.profiling_info if number else ():  # the first call is cold
                key = (each.node_name, each.node_type, each.exec_type)
                spent[key] = spent.get(key, 0.0) + each.real_time.total_seconds() * 1e3 / runs
    integers = {key: key[1] in _PRODUCTS and key[2].lower().endswith("i8") for key in spent}
    return tuple(Operator(*key[:2], ms, integers=integers[key]) for key, ms in spent.items() if ms > 0)


def compile_engine(bundle: Path, component: str, model: str, engine: EngineSettings) -> EngineFile:
    """Open the bundle's ONNX file and write `engines/<component>.openvino.<device>.json`, which says how to run it."""
    check_device(engine)
    with OpenVinoRunner(bundle / model, engine.model_copy(update={"cache": False})) as runner:  # nothing is run
        runner.compile()
        inputs, outputs = open_graph(bundle / model).ports()
        file = EngineFile(
            component=component,
            device=engine.device,
            precision=engine.precision,
            model=model,
            threads=engine.threads,
            version=_version(),
            inputs={name: port.dims for name, port in inputs.items()},
            outputs={name: port.dims for name, port in outputs.items()},
        )
    write_atomically(_sidecar(bundle, component, engine.device), file.model_dump_json(indent=1) + "\n")
    return file


def open_engine(bundle: Path, component: str, engine: EngineSettings, weights: Mapping[str, np.ndarray] | None = None) -> OpenVinoRunner:
    """Open a component of a bundle with other `weights` of some names; the engine's threads go before those of the build.

    A bundle that was built for another backend needs no file of OpenVINO's: its ONNX files are all that is run. Raises as `open_runner`.
    """
    path, model, threads = _sidecar(bundle, component, engine.device), f"{component}/model.onnx", engine.threads
    if path.is_file():
        try:
            file = EngineFile.model_validate_json(read_bytes(path))
        except ValidationError as error:
            raise BundleError(f"{path} does not describe an engine: build the bundle again") from error
        model, threads = file.model, threads or file.threads
    if not (bundle / model).is_file():
        raise InputError(f"the bundle {bundle} has no {component}: build it with the variants that are to be run")
    return open_runner(bundle / model, engine.model_copy(update={"threads": threads}), weights)


def _sidecar(bundle: Path, component: str, device: str) -> Path:
    return bundle / "engines" / f"{component}.openvino.{device}.json"


def available() -> tuple[str, ...]:
    """The devices that OpenVINO finds here, in the recipe's words. Raises `MissingDependency` where it is not installed."""
    found = {name.partition(".")[0] for name in _core().available_devices}
    return tuple(name for name, theirs in DEVICES.items() if theirs in found)


def capabilities(device: str) -> tuple[str, ...]:
    """The types that a device computes in, in the recipe's words."""
    told = set(_core().get_property(DEVICES[device], "OPTIMIZATION_CAPABILITIES"))
    return tuple(name for name in DTYPES if name.upper() in told)


def check_device(engine: EngineSettings) -> None:
    """Raise `MissingDependency` unless OpenVINO is installed, finds the device, and the device computes in `engine.precision`."""
    if engine.device not in available():
        driver = {"gpu": "Intel's GPU driver (OpenCL)", "npu": "Intel's NPU driver"}.get(engine.device, "a CPU that it knows")
        raise MissingDependency(
            f"OpenVINO finds no {DEVICES[engine.device]} here: install {driver}, or set engine.device to one of {', '.join(available())}"
        )
    able = capabilities(engine.device)
    if engine.precision not in able:
        raise MissingDependency(
            f"the {DEVICES[engine.device]} here has no instructions for {engine.precision}: set engine.precision to {' or '.join(able)}"
        )


def check_integers(engine: EngineSettings, what: str) -> None:
    """Raise `MissingDependency` where sums of products of 8-bit integers, which `what` has, overflow in OpenVINO: before VNNI."""
    if engine.device == "cpu" and int8_products() == "overflows":
        raise MissingDependency(
            f"{what}: OpenVINO adds up products of 8-bit integers in 16 bits on a CPU without VNNI, as this one, and they overflow: take "
            "ONNX Runtime, which adds them up in 32 bits (engine.backend = 'onnxruntime'; no openvino in latency.beside), or another CPU"
        )


def describe(engine: EngineSettings) -> dict[str, Any]:
    """Version, device and type, for provenance."""
    return {"backend": "openvino", "version": _version(), "device": engine.device, "precision": engine.precision}


def _hardware(device: str) -> str:
    return str(_core().get_property(DEVICES[device], "FULL_DEVICE_NAME"))


def _version() -> str:
    found: str = load().__version__.partition("-")[0]
    return found


def without_telemetry() -> None:
    """Have OpenVINO take its own stub in the place of its telemetry, when it is imported."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def load() -> Any:
    """Import OpenVINO without its telemetry. Raises `MissingDependency` where it is not installed or broken."""
    without_telemetry()
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise MissingDependency(f"OpenVINO cannot be imported ({first_line(error)}): {_INSTALL}") from error
    return openvino


def _core() -> Any:
    return load().Core()


def _read(model: Path, weights: Mapping[str, np.ndarray]) -> Any:
    try:
        graph = _core().read_model(str(model))
    except RuntimeError as error:
        raise InputError(f"OpenVINO cannot open {model}: {_reason(error)}") from error
    _replace_(graph, weights, model)
    return graph


def _options(engine: EngineSettings) -> dict[str, Any]:
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": DTYPES[engine.precision]}
    return {**options, "INFERENCE_NUM_THREADS": engine.threads or cores()} if engine.device == "cpu" else options


def _replace_(graph: Any, weights: Mapping[str, np.ndarray], model: Path) -> None:
    """Put other weights in the place of those of their names."""
    if not weights:
        return
    from openvino import opset13

    left = dict(weights)
    for node in graph.get_ordered_ops():
        array = left.pop(node.get_friendly_name(), None) if node.get_type_name() == "Constant" else None
        if array is not None:
            node.output(0).replace(opset13.constant(np.ascontiguousarray(array), node.get_element_type()).output(0))
    if left:
        raise InputError(f"{model} has no weights {next(iter(left))}: build the bundle again")


def _check_precision(compiled: Any, model: Path, engine: EngineSettings) -> None:
    """Raise `InputError` where OpenVINO says that it computes in another type than was asked for."""
    told = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    found = next((name for name, theirs in DTYPES.items() if theirs == told), str(told))
    if found != engine.precision:
        raise InputError(f"OpenVINO computes {model} in {found} on {DEVICES[engine.device]}, not in {engine.precision}: ask for {found}")


def _dims(port: Any) -> tuple[int | str | None, ...]:
    return tuple(dim.get_length() if dim.is_static else None for dim in port.partial_shape)


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's, which begins with its own files and lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Exception from" not in line]
    return lines[-1] if lines else first_line(error)
