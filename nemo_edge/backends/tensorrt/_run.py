"""An open TensorRT engine: runs it, keeps what TensorRT-RTX compiled for it, changes its weights.

Written against the documentation of both products' Python API; what a plan was built for it reads in the sidecar.
"""

from __future__ import annotations

__all__ = ["TensorRtRunner", "refit_weights", "runtime_cache_path", "serialize"]

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from nemo_edge.backends.feeds import check_feed, in_batches
from nemo_edge.backends.tensorrt._build import construct, make_logger
from nemo_edge.backends.tensorrt.flavours import FLAVOURS, load_product, runtime_settings
from nemo_edge.backends.tensorrt.plans import PlanFile
from nemo_edge.backends.tensorrt.profiles import choose_profile, rows_at_once
from nemo_edge.recipe.targets import PlanSettings
from nemo_edge.system.environment import gpus
from nemo_edge.system.errors import ExportError, InputError, MissingDependency
from nemo_edge.system.files import sha256_json, user_cache, write_atomically

_TYPES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}
"""TensorRT's name of a type → PyTorch's, which is numpy's too."""
_SPARE_BYTES = 512 << 20
"""GPU memory that streamed weights leave free, beside what a context takes for activations: buffers, and what CUDA itself takes."""


class TensorRtRunner:
    """Owns an engine, its execution context, and buffers on the GPU of the last shape that was run.

    One runner at a time in one thread: an execution context must not be used by two. Leaving the context frees what it holds.
    """

    def __init__(self, bundle: Path, plan: PlanFile, settings: PlanSettings | None, factor: int, weight_budget: int | None) -> None:
        import torch

        self.plan = plan
        self.inputs: dict[str, tuple[int | str | None, ...]] = {name: tensor.dims for name, tensor in plan.inputs.items()}
        self._torch, self._trt, self._factor = torch, load_product(plan.backend), factor
        self._settings = {**plan.settings, **(runtime_settings(settings) if settings else {})}
        self._logger = make_logger(self._trt)
        self._stream = torch.cuda.Stream()
        self._engine = self._deserialize(bundle / plan.plan, weight_budget)
        self._config: Any = None
        self._cache: Any = None
        self._cache_path: Path | None = None
        self._context = self._make_context()
        self._profile = 0
        self._graph: Any = None
        self._shapes: dict[str, tuple[int, ...]] | None = None
        self._buffers: dict[str, Any] = {}
        pinned = next(iter(self.inputs.values()))[0]
        self._batch = pinned if isinstance(pinned, int) else None

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once, or in parts where there are more rows than a profile holds.

        Raises `InputError` as `Runner` says, and for a shape outside of every profile.
        """
        if self._context is None:
            raise InputError("this runner is closed: open the engine again")
        check_feed(feed, {name: ("batch", *dims[1:]) for name, dims in self.inputs.items()} if self._batch else self.inputs)
        size = self._batch or rows_at_once({name: tuple(feed[name].shape) for name in self.inputs}, self.plan.profiles)
        return in_batches(feed, size, self._run) if size else self._run(feed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._context is None:
            return
        try:
            self._stream.synchronize()
            if kind is None:
                self._keep_kernels()
        except RuntimeError:
            if kind is None:  # else the first error is the one to tell
                raise
        finally:
            self._release()

    @property
    def engine(self) -> Any:
        """TensorRT's own engine."""
        if self._engine is None:
            raise InputError("this runner is closed: open the engine again")
        return self._engine

    def again(self, changed: Mapping[str, Any]) -> Any:
        """Run once more on what was fed last, some inputs `changed` by tensors on the GPU; return the first output there, when it is done.

        What an engine takes without the way from and to the host's memory.
        """
        with self._torch.cuda.stream(self._stream):
            for name, value in changed.items():
                self._buffers[name].copy_(value)
            self._graph.replay() if self._graph is not None else self._enqueue()
        self._stream.synchronize()
        return self._buffers[next(iter(self.plan.outputs))]

    def reset(self) -> None:
        """Forget the recorded work of the last shape, after the engine was changed."""
        self._stream.synchronize()
        self._graph, self._shapes = None, None

    def _keep_kernels(self) -> None:
        content = self._cache.serialize() if self._cache is not None else None
        if content is not None and self._cache_path is not None:
            with suppress(InputError):  # the cache only saves time: a full disk there stops nobody
                write_atomically(self._cache_path, bytes(content))

    def _release(self) -> None:
        self._graph, self._shapes, self._context = None, None, None
        self._buffers.clear()
        self._config, self._cache, self._engine = None, None, None
        with suppress(RuntimeError):  # a GPU that failed has said so
            self._torch.cuda.empty_cache()

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        torch = self._torch
        shapes = {name: tuple(feed[name].shape) for name in self.inputs}
        with torch.cuda.stream(self._stream):
            fresh = shapes != self._shapes
            if fresh:
                self._prepare(shapes)
            for name in self.inputs:
                self._buffers[name].copy_(torch.from_numpy(np.ascontiguousarray(feed[name])))  # casts to the engine's type
            self._graph.replay() if self._graph is not None else self._enqueue()
            if fresh:
                self._record()
            found = {name: self._buffers[name].float().cpu().numpy() for name in self.plan.outputs}
        self._stream.synchronize()
        return found

    def _prepare(self, shapes: dict[str, tuple[int, ...]]) -> None:
        """Choose the profile, and bind buffers of these shapes; a graph of other shapes is dropped."""
        table = FLAVOURS[self.plan.backend].table
        index = choose_profile(shapes, self.plan.profiles, self.plan.component, self._factor, table)
        self._graph, self._shapes = None, None
        if index != self._profile:
            if not self._context.set_optimization_profile_async(index, self._stream.cuda_stream):
                raise InputError(self._complaint(f"cannot take its profile {index}"))
            self._stream.synchronize()
            self._profile = index
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise InputError(self._complaint(f"does not take {name} {list(shape)}"))
        for name in (*self.plan.inputs, *self.plan.outputs):
            self._bind(name, shapes.get(name) or tuple(self._context.get_tensor_shape(name)))
        self._shapes = shapes

    def _bind(self, name: str, shape: tuple[int, ...]) -> None:
        dtype = getattr(self._torch, _TYPES[self.engine.get_tensor_dtype(name).name])
        buffer = self._buffers.get(name)
        if buffer is None or tuple(buffer.shape) != shape:
            self._buffers[name] = self._torch.empty(shape, dtype=dtype, device="cuda")
        if not self._context.set_tensor_address(name, self._buffers[name].data_ptr()):
            raise InputError(self._complaint(f"does not take the buffer of {name}"))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise InputError(self._complaint("cannot run this feed"))

    def _record(self) -> None:
        """Record the work of this shape, which has run once; TensorRT-RTX does so by itself. Without a graph it runs all the same."""
        if not self._settings.get("cuda_graphs") or FLAVOURS[self.plan.backend].captures_graphs or self._streams_weights():
            return
        graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._enqueue()
        except (RuntimeError, InputError):  # what cannot be recorded: work on the host between kernels
            self._settings["cuda_graphs"] = False
            self._stream.synchronize()
            self._logger.errors.clear()  # what it says of that is no cause of what follows
            return
        self._graph = graph

    def _deserialize(self, path: Path, weight_budget: int | None) -> Any:
        product = FLAVOURS[self.plan.backend]
        runtime = construct(self._trt, "Runtime", product.title, self._logger)
        if "VERSION_COMPATIBLE" in self.plan.flags:
            runtime.engine_host_code_allowed = True  # the lean runtime that such a plan carries
        try:
            engine = runtime.deserialize_cuda_engine(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}: build the engine again") from error
        if engine is None:
            raise MissingDependency(
                f"{product.title} {self._trt.__version__} cannot open {path}, built with {self.plan.version}"
                f"{f' on {self.plan.built_on}' if self.plan.built_on else ''}: {self._said()}; install that version, or build it here"
            )
        if "WEIGHT_STREAMING" in self.plan.flags and engine.streamable_weights_size:
            self._limit_weights(engine, weight_budget)
        return engine

    def _limit_weights(self, engine: Any, budget: int | None) -> None:
        """Set how many bytes of the weights stay on the GPU, all that have room where no budget is given.

        TensorRT's own choice comes through its bindings as 32 bits, which two GiB do not fit in; the setter tells no failure.
        """
        if budget is None:
            budget = max(0, self._torch.cuda.mem_get_info()[0] - engine.device_memory_size_v2 - _SPARE_BYTES)
        budget = min(budget, engine.streamable_weights_size)
        engine.weight_streaming_budget_v2 = budget
        if engine.weight_streaming_budget_v2 != budget:
            raise InputError(
                self._complaint(f"does not keep {budget} bytes of its {engine.streamable_weights_size} bytes of weights on the GPU")
                + "; give another weight_budget, or build it with tensorrt.weight_streaming = false"
            )

    def _streams_weights(self) -> bool:
        return "WEIGHT_STREAMING" in self.plan.flags and self.engine.weight_streaming_budget_v2 < self.engine.streamable_weights_size

    def _make_context(self) -> Any:
        if FLAVOURS[self.plan.backend].captures_graphs:
            self._config = self._runtime_config()  # a context does not keep it
            context = self._engine.create_execution_context(self._config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise MissingDependency(self._complaint("finds no room on the GPU, or cannot compile its kernels here"))
        return context

    def _runtime_config(self) -> Any:
        """TensorRT-RTX's own settings of a context: CUDA graphs, kernels for the shapes in use, the cache of compiled kernels."""
        trt, config = self._trt, self._engine.create_runtime_config()
        graphs = "WHOLE_GRAPH_CAPTURE" if self._settings.get("cuda_graphs") else "DISABLED"
        config.cuda_graph_strategy = getattr(trt.CudaGraphStrategy, graphs)
        kernels = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(
            kernels, str(self._settings.get("kernel_specialization", "lazy")).upper()
        )
        if self._settings.get("runtime_cache"):
            self._cache = config.create_runtime_cache()
            driver = next((gpu.driver for gpu in gpus()), "")
            self._cache_path = runtime_cache_path(self.plan, self._torch.cuda.get_device_name(), driver)
            if self._cache_path.is_file():
                self._cache.deserialize(self._cache_path.read_bytes())  # False for a cache of another driver: it is made anew
            if not config.set_runtime_cache(self._cache):
                self._cache, self._cache_path = None, None
            self._logger.errors.clear()  # what it says of a cache of another driver is no cause of what follows
        return config

    def _complaint(self, what: str) -> str:
        return f"the {FLAVOURS[self.plan.backend].title} engine of {self.plan.component} {what}: {self._said()}"

    def _said(self) -> str:
        said, self._logger.errors[:] = list(self._logger.errors), []
        return " ".join((said or ["it gives no reason"])[0].split())


def refit_weights(runner: TensorRtRunner, weights: Mapping[str, np.ndarray]) -> None:
    """Change weights of an open engine, by their names in the ONNX file; the plan on disk stays as it is.

    Raises `InputError` for a weight that is not refittable or has another type or size than the engine's, and where others
    must be given with it; the engine is as it was then. Raises `ExportError` when TensorRT fails half-way: open it again.
    """
    if not runner.engine.refittable:
        raise InputError(
            f"the engine of {runner.plan.component} takes no other weights: build it with tensorrt.refit = 'value_weights' or 'all'"
        )
    trt = load_product(runner.plan.backend)
    logger = make_logger(trt)
    refitter = trt.Refitter(runner.engine, logger)
    kept = {name: np.ascontiguousarray(array) for name, array in weights.items()}  # TensorRT reads them in `refit_cuda_engine`
    for name, array in kept.items():
        prototype = refitter.get_weights_prototype(name)
        _check_weight(name, array, prototype)
        if not refitter.set_named_weights(name, trt.Weights(prototype.dtype, array.ctypes.data, array.size)):
            raise InputError(f"the engine of {runner.plan.component} refuses {name}: {' '.join(logger.errors[:1])}")
    missing = refitter.get_missing_weights()
    if missing:
        raise InputError(f"the engine of {runner.plan.component} needs {', '.join(missing[:3])} with these weights: give them too")
    runner.reset()
    if not refitter.refit_cuda_engine():
        raise ExportError(f"the engine of {runner.plan.component} is refitted in part only: open it again; {' '.join(logger.errors[:1])}")


def serialize(runner: TensorRtRunner) -> tuple[bytes, bool]:
    """Return an open engine as a plan with all its weights, and whether those of the plan can be changed again.

    They can where the bindings know `INCLUDE_REFIT` (TensorRT 10.14 and later). Raises `ExportError` when TensorRT fails.
    """
    flags, config = load_product(runner.plan.backend).SerializationFlag, runner.engine.create_serialization_config()
    again = hasattr(flags, "INCLUDE_REFIT") and bool(config.set_flag(flags.INCLUDE_REFIT))
    config.clear_flag(flags.EXCLUDE_WEIGHTS)
    content = runner.engine.serialize_with_config(config)
    if content is None:
        raise ExportError(f"the engine of {runner.plan.component} cannot be written: build it again")
    return bytes(content), again


def runtime_cache_path(plan: PlanFile, gpu: str, driver: str) -> Path:
    """Return where the kernels that TensorRT-RTX compiles for a plan on a GPU are kept: in the user's cache folder.

    The key is all of the sidecar but how long the build took: the same graph and settings give the same plan.
    """
    key = sha256_json([plan.model_dump(mode="json", exclude={"build_s"}), gpu, driver])
    return user_cache("tensorrt-rtx") / f"{plan.component}-{key[:32]}.cache"


def _check_weight(name: str, array: np.ndarray, prototype: Any) -> None:
    if prototype.size < 0:
        raise InputError(f"{name} cannot be changed in this engine: build it with tensorrt.refit = 'value_weights' or 'all'")
    dtype = _TYPES.get(prototype.dtype.name, prototype.dtype.name.lower())
    if array.dtype.name != dtype or array.size != prototype.size:
        raise InputError(
            f"{name} has {array.size} values of {array.dtype.name}, but the engine takes {prototype.size} of {dtype}: "
            "give it as the graph has it"
        )
