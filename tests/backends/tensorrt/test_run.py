"""An open engine. Most of it takes a GPU; where compiled kernels are kept does not."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_edge.backends.tensorrt import _run as running
from nemo_edge.backends.tensorrt._run import TensorRtRunner, refit_weights, runtime_cache_path
from nemo_edge.backends.tensorrt.plans import PlanFile
from nemo_edge.system.errors import InputError

MODEL = "unet/model.onnx"
GIB = 1 << 30


def plan(**changes: object) -> PlanFile:
    fields = {
        "component": "unet",
        "backend": "tensorrt-rtx",
        "version": "1.7.1.116",
        "plan": "engines/unet.tensorrt-rtx.sm86.engine",
        "size_bytes": 1,
        "model": MODEL,
        "graph_hash": "h",
        "targets": ("sm86",),
        "system": "Linux and Windows",
        "dtype": "fp16",
        "inputs": {},
        "outputs": {},
        "profiles": (),
        "flags": (),
        "settings": {},
        "reproducible": True,
        "build_s": 1.0,
    }
    return PlanFile.model_validate({**fields, **changes})


def test_kernels_are_kept_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = runtime_cache_path(plan(), "NVIDIA RTX 4090", "580.65")
    assert path.parent == tmp_path / "nemo-edge" / "tensorrt-rtx"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert runtime_cache_path(plan(), "g", "d").is_relative_to(tmp_path / "home" / ".cache" / "nemo-edge")


def test_another_plan_gpu_or_driver_has_kernels_of_its_own() -> None:
    own = runtime_cache_path(plan(), "RTX 4090", "580")
    assert runtime_cache_path(plan(build_s=2.0), "RTX 4090", "580") == own
    others = [
        runtime_cache_path(plan(graph_hash="other"), "RTX 4090", "580"),
        runtime_cache_path(plan(version="1.8.0.1"), "RTX 4090", "580"),
        runtime_cache_path(plan(), "RTX 3090", "580"),
        runtime_cache_path(plan(), "RTX 4090", "590"),
    ]
    assert len({own, *others}) == 5


class Engine:
    """Stands for TensorRT's engine, which takes a GPU: its weights, and how many bytes of them it was told to keep there."""

    streamable_weights_size, device_memory_size_v2, refittable = 6 * GIB, GIB, False

    def __init__(self, obeys: bool = True) -> None:
        self.obeys, self.budget = obeys, 6 * GIB

    @property
    def weight_streaming_budget_v2(self) -> int:
        return self.budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, budget: int) -> None:
        self.budget = budget if self.obeys else self.budget

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()


class RuntimeConfig:
    """Stands for TensorRT-RTX's settings of a context, which an engine makes."""

    def __init__(self, takes_cache: bool = True) -> None:
        self.cache = Cache()
        self.taken: list[Cache] = []
        self.takes_cache = takes_cache

    def create_runtime_cache(self) -> Cache:
        return self.cache

    def set_runtime_cache(self, cache: Cache) -> bool:
        self.taken += [cache] if self.takes_cache else []
        return self.takes_cache


class Cache:
    """Stands for TensorRT-RTX's cache of compiled kernels."""

    def __init__(self, content: bytes | None = b"kernels") -> None:
        self.content, self.read = content, b""

    def serialize(self) -> bytes | None:
        return self.content

    def deserialize(self, content: bytes) -> bool:
        self.read = content
        return True


class Stream:
    """Stands for a stream of CUDA's, whose work may have failed."""

    def __init__(self, error: str = "") -> None:
        self.error = error

    def synchronize(self) -> None:
        if self.error:
            raise RuntimeError(self.error)


def runner(engine: Engine | None = None, stream: Stream | None = None, free: int = 24 * GIB, **changes: Any) -> Any:
    """A runner as `__init__` leaves it, with what takes a GPU replaced: this machine need not have one."""
    self: Any = TensorRtRunner.__new__(TensorRtRunner)
    self.plan, self._engine, self._stream = plan(**changes), engine or Engine(), stream or Stream()
    cuda = SimpleNamespace(mem_get_info=lambda: (free, 80 * GIB), empty_cache=lambda: None, get_device_name=lambda: "L4")
    self._torch = SimpleNamespace(cuda=cuda)
    self._trt = SimpleNamespace(Runtime=None, __version__="11.4.0")
    self._logger, self._settings = SimpleNamespace(errors=[]), dict(self.plan.settings)
    self._context, self._graph, self._shapes, self._buffers = object(), None, None, {"sample": object()}
    self._config, self._cache, self._cache_path = None, None, None
    return self


def opened(self: Any, folder: Path, weight_budget: int | None = None) -> SimpleNamespace:
    """The runtime that opens the runner's engine."""
    runtime = SimpleNamespace(engine_host_code_allowed=False, deserialize_cuda_engine=lambda _: self._engine)
    self._trt.Runtime = lambda _: runtime
    (folder / "plan").write_bytes(b"plan")
    assert self._deserialize(folder / "plan", weight_budget) is self._engine
    return runtime


@pytest.mark.parametrize(
    ("free", "given", "kept"),
    [(24 * GIB, None, 6 * GIB), (5 * GIB, None, 7 * GIB // 2), (GIB, None, 0), (24 * GIB, 3 * GIB, 3 * GIB), (GIB, 8 * GIB, 6 * GIB)],
)
def test_streamed_weights_leave_room_for_the_context(tmp_path: Path, free: int, given: int | None, kept: int) -> None:
    """In more than 32 bits, half a GiB beside the GiB of activations."""
    self = runner(free=free, flags=("WEIGHT_STREAMING",))
    opened(self, tmp_path, given)
    assert self._engine.budget == kept
    assert self._streams_weights() == (kept < 6 * GIB)


def test_an_engine_that_does_not_take_the_budget_is_refused(tmp_path: Path) -> None:
    self = runner(Engine(obeys=False), flags=("WEIGHT_STREAMING",))
    with pytest.raises(
        InputError, match=r"does not keep 5 bytes of its 6442450944 bytes of weights on the GPU: .*; give another weight_budget"
    ):
        opened(self, tmp_path, 5)


def test_how_a_plan_is_opened_is_how_it_was_built(tmp_path: Path) -> None:
    """Settings may be others than those of the build: they are about how it is run."""
    wanted = {"version_compatible": True, "weight_streaming": True}
    self = runner(Engine(obeys=False), settings=wanted)
    assert not opened(self, tmp_path, 5).engine_host_code_allowed
    assert not self._streams_weights()
    assert opened(runner(flags=("VERSION_COMPATIBLE",)), tmp_path).engine_host_code_allowed


@pytest.mark.parametrize(
    ("settings", "graphs", "kernels"),
    [
        ({"cuda_graphs": True, "kernel_specialization": "eager"}, "WHOLE_GRAPH_CAPTURE", "EAGER"),
        ({"cuda_graphs": False, "kernel_specialization": "none"}, "DISABLED", "NONE"),
        ({}, "DISABLED", "LAZY"),
    ],
)
def test_settings_reach_the_context_of_tensorrt_rtx(settings: dict[str, Any], graphs: str, kernels: str) -> None:
    self = runner(settings=settings)
    self._trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    config = self._runtime_config()
    assert config.cuda_graph_strategy == getattr(self._trt.CudaGraphStrategy, graphs)
    strategies = self._trt.DynamicShapesKernelSpecializationStrategy
    assert config.dynamic_shapes_kernel_specialization_strategy == getattr(strategies, kernels)
    assert (self._cache, config.taken) == (None, [])


def test_kernels_are_read_and_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    self = runner(settings={"runtime_cache": True})
    self._trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    config = self._runtime_config()
    assert (config.taken, config.cache.read) == ([config.cache], b"")
    path = self._cache_path
    with self:
        pass
    assert path.read_bytes() == b"kernels"
    again = runner(settings={"runtime_cache": True})
    again._trt = self._trt
    assert again._runtime_config().cache.read == b"kernels"


def test_a_cache_that_is_not_taken_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    self = runner(settings={"runtime_cache": True})
    self._trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.setattr(self._engine, "create_runtime_config", lambda: RuntimeConfig(takes_cache=False))
    self._runtime_config()
    assert (self._cache, self._cache_path) == (None, None)


@pytest.mark.parametrize("content", [None, b"kernels"])
@pytest.mark.parametrize("error", ["", "CUDA error: an illegal memory access"])
@pytest.mark.parametrize("first", [None, InputError("the feed is wrong")])
def test_leaving_frees_all_and_tells_the_first_error(tmp_path: Path, content: bytes | None, error: str, first: InputError | None) -> None:
    """Also where the GPU failed, and where there is nothing to keep; after an error no kernels are kept."""
    self = runner(stream=Stream(error))
    self._cache, self._cache_path = Cache(content), tmp_path / "kernels"
    expected = str(first or error)
    with pytest.raises(type(first or RuntimeError()), match=expected) if expected else nullcontext(), self:
        if first:
            raise first
    assert (self._context, self._config, self._cache, self._engine, self._buffers) == (None, None, None, None, {})
    assert (tmp_path / "kernels").exists() == (content is not None and not error and first is None)


def test_work_that_cannot_be_recorded_leaves_no_error_behind() -> None:
    self = runner(backend="tensorrt", settings={"cuda_graphs": True})

    def refuse(*_: object, **__: object) -> None:
        self._logger.errors.append("operation not permitted when stream is capturing")
        raise RuntimeError("capture failed")

    self._torch.cuda.CUDAGraph, self._torch.cuda.graph = object, refuse
    self._record()
    assert (self._graph, self._settings["cuda_graphs"], self._logger.errors) == (None, False, [])


def test_streamed_weights_are_not_recorded() -> None:
    self = runner(backend="tensorrt", settings={"cuda_graphs": True}, flags=("WEIGHT_STREAMING",))
    self._torch.cuda.CUDAGraph = lambda: pytest.fail("recorded")
    self._engine.budget = GIB
    self._record()
    assert self._graph is None


def test_a_buffer_that_is_not_taken_is_told() -> None:
    self = runner()
    self._buffers.clear()
    self._torch.float16, self._torch.empty = None, lambda *_, **__: SimpleNamespace(shape=(1,), data_ptr=lambda: 0)
    self._engine.get_tensor_dtype = lambda _: SimpleNamespace(name="HALF")
    self._context = SimpleNamespace(set_tensor_address=lambda *_: False)
    with pytest.raises(InputError, match="the TensorRT-RTX engine of unet does not take the buffer of sample"):
        self._bind("sample", (1,))


def test_an_engine_that_takes_no_weights_says_how_it_would() -> None:
    with pytest.raises(InputError, match=r"takes no other weights: build it with tensorrt.refit = 'value_weights' or 'all'"):
        refit_weights(runner(), {})


NAMES = {
    "Builder": ("create_builder_config", "create_network", "create_optimization_profile", "build_serialized_network"),
    "IBuilderConfig": (
        "set_flag",
        "clear_flag",
        "get_flag",
        "hardware_compatibility_level",
        "builder_optimization_level",
        "num_compute_capabilities",
        "set_compute_capability",
        "add_optimization_profile",
        "create_timing_cache",
        "set_timing_cache",
        "get_timing_cache",
        "progress_monitor",
    ),
    "INetworkDefinition": ("get_input", "get_layer", "num_inputs", "num_layers", "num_outputs", "mark_weights_refittable"),
    "IOptimizationProfile": ("set_shape",),
    "OnnxParser": ("parse_from_file", "num_errors", "get_error"),
    "ITimingCache": ("serialize",),
    "IAttentionInputLayer": ("attention",),
    "IAttention": ("decomposable",),
    "IProgressMonitor": ("phase_start", "phase_finish", "step_complete"),
    "ILogger": ("log", "Severity"),
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context",
        "create_runtime_config",
        "create_serialization_config",
        "serialize_with_config",
        "get_tensor_dtype",
        "refittable",
        "streamable_weights_size",
        "weight_streaming_budget_v2",
        "device_memory_size_v2",
    ),
    "IExecutionContext": (
        "set_optimization_profile_async",
        "set_input_shape",
        "get_tensor_shape",
        "set_tensor_address",
        "execute_async_v3",
    ),
    "IRuntimeConfig": (
        "cuda_graph_strategy",
        "dynamic_shapes_kernel_specialization_strategy",
        "create_runtime_cache",
        "set_runtime_cache",
    ),
    "IRuntimeCache": ("serialize", "deserialize"),
    "ISerializationConfig": ("set_flag", "clear_flag"),
    "Refitter": ("get_weights_prototype", "set_named_weights", "get_missing_weights", "refit_cuda_engine"),
    "BuilderFlag": ("TF32", "REFIT", "REFIT_INDIVIDUAL", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"),
    "HardwareCompatibilityLevel": ("NONE", "AMPERE_PLUS", "SAME_COMPUTE_CAPABILITY"),
    "ComputeCapability": ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "LayerType": ("ATTENTION_INPUT",),
    "SerializationFlag": ("EXCLUDE_WEIGHTS", "INCLUDE_REFIT"),
    "CudaGraphStrategy": ("WHOLE_GRAPH_CAPTURE", "DISABLED"),
    "DynamicShapesKernelSpecializationStrategy": ("LAZY", "EAGER", "NONE"),
    "DataType": tuple(running._TYPES),
}
"""Class of TensorRT's → its members that are used here."""


@pytest.mark.parametrize("kind", NAMES)
def test_tensorrt_has_what_is_used_of_it(kind: str) -> None:
    """Most of it runs on a GPU alone; a name that is gone is seen without one."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert [name for name in NAMES[kind] if not hasattr(getattr(trt, kind), name)] == []
