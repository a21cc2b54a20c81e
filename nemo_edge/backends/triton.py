"""A model on an inference server as a runner: over gRPC with raw contents, or through any call that takes and gives arrays.

Speaks the KServe protocol V2. What a model takes is read from its configuration, which only Triton has, and on any other server from
its metadata.
"""

from __future__ import annotations

__all__ = ["Infer", "Signature", "TritonRunner", "open_runner"]

import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_edge.backends.feeds import check_feed, in_batches
from nemo_edge.backends.tensorrt.plans import Tensor
from nemo_edge.system.errors import InputError, MissingDependency

Infer = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""One request to a model: arrays as the server takes them in, arrays as it gives them out. Raises `NemoEdgeError` for a refusal."""

_INSTALL = "`pip install 'nemo-edge[serve]'`"
_OF_NO_SERVER = "failed to connect"
_UNIMPLEMENTED = "UNIMPLEMENTED"
_ANY_NUMBER = sys.maxsize


class Signature(BaseModel):
    """What a served model takes and gives: types in numpy's words, dimensions with the batch as the first, and most rows at once."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    rows: int

    @property
    def pinned(self) -> int | None:
        """The batch that the model is pinned to."""
        first = next(iter(self.inputs.values())).dims[0]
        return first if isinstance(first, int) else None

    def request(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The feed as the server takes it: cast, and one number a row as [B, 1], since no input has a rank of 0 there."""
        typed = {name: np.ascontiguousarray(feed[name], tensor.dtype) for name, tensor in self.inputs.items()}
        return typed if self.pinned else {name: array[:, None] if array.ndim == 1 else array for name, array in typed.items()}


class TritonRunner:
    """Calls a served model through `infer`; a feed of more rows than it takes goes in several requests. `close` ends the connection."""

    def __init__(self, signature: Signature, infer: Infer, close: Callable[[], None] = lambda: None) -> None:
        self.signature = signature
        self.inputs: Mapping[str, tuple[int | str | None, ...]] = {name: tensor.dims for name, tensor in signature.inputs.items()}
        self._infer, self._close = infer, close

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Raises `InputError` as `Runner` says, and for what the server refuses."""
        pinned = self.signature.pinned
        check_feed(feed, {name: ("batch", *dims[1:]) for name, dims in self.inputs.items()})
        if pinned:
            return in_batches(feed, pinned, self._run)
        rows, most = len(next(iter(feed.values()))), self.signature.rows
        parts = [self._run({name: array[i : i + most] for name, array in feed.items()}) for i in range(0, rows, most)]
        return parts[0] if len(parts) == 1 else {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        answer = self._infer(self.signature.request(feed))
        return {name: np.asarray(array, np.float32) for name, array in answer.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()


def open_runner(url: str, model: str, version: int | None = None, timeout_s: float | None = None) -> TritonRunner:
    """Open a model of a server at `url` ("127.0.0.1:8001", gRPC), of a version or the latest.

    Raises `MissingDependency` without tritonclient and for a server that does not answer, `InputError` for a model that is not there.
    """
    grpc = _client_library()
    client = grpc.InferenceServerClient(url)
    number = "" if version is None else str(version)

    def call(action: Callable[[], Any]) -> Any:
        try:
            return action()
        except grpc.InferenceServerException as error:
            raise _explain(error, f"{model} at {url}", url) from error

    def infer(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        inputs = [_input(grpc, name, array) for name, array in arrays.items()]
        answer = call(lambda: client.infer(model, inputs, number, client_timeout=timeout_s))
        return {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}

    try:
        config = client.get_model_config(model, number, client_timeout=timeout_s).config
    except grpc.InferenceServerException as error:
        if _UNIMPLEMENTED not in str(error.status()):
            raise _explain(error, f"{model} at {url}", url) from error
        signature = _declared(call(lambda: client.get_model_metadata(model, number, client_timeout=timeout_s)), f"{model} at {url}")
        return TritonRunner(signature, _in_declared_ranks(signature, infer), client.close)
    return TritonRunner(_signature(config), infer, client.close)


def _client_library() -> Any:
    try:
        import tritonclient.grpc
    except ImportError as error:
        raise MissingDependency(f"a model on a server needs tritonclient: {_INSTALL}") from error
    return tritonclient.grpc


def _input(grpc: Any, name: str, array: np.ndarray) -> Any:
    from tritonclient.utils import np_to_triton_dtype

    tensor = grpc.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def _explain(error: Any, what: str, url: str) -> InputError | MissingDependency:
    said = " ".join(str(error.message()).split())
    if _OF_NO_SERVER in said.lower():
        return MissingDependency(f"no server answers at {url}: start one, or give its gRPC address")
    return InputError(f"{what}: {said}")


def _signature(config: Any) -> Signature:
    """A model's signature from the configuration that the server has of it."""
    batched = config.max_batch_size > 0

    def tensor(port: Any) -> Tensor:
        dims = port.reshape.shape if port.HasField("reshape") else port.dims
        free = tuple(int(size) if size >= 0 else f"dim{axis}" for axis, size in enumerate(dims))
        return Tensor(dtype=_dtype(port.data_type), dims=("batch", *free) if batched else free)

    inputs, outputs = ({port.name: tensor(port) for port in ports} for ports in (config.input, config.output))
    return Signature(inputs=inputs, outputs=outputs, rows=config.max_batch_size or 1)


def _declared(metadata: Any, what: str) -> Signature:
    """A model's signature from its metadata, in the protocol's own words: the batch is the first dimension of each shape.

    The protocol says nothing of how many rows a request may have. Raises `InputError` for a server that declares nothing.
    """
    if not metadata.inputs or not metadata.outputs:
        raise InputError(f"{what} does not say what it takes and gives: declare its inputs and outputs in the server's settings of it")

    def tensor(port: Any) -> Tensor:
        dims = tuple(int(size) if size >= 0 else f"dim{axis}" if axis else "batch" for axis, size in enumerate(port.shape))
        return Tensor(dtype=_numpy_name(port.datatype), dims=dims)

    inputs, outputs = ({port.name: tensor(port) for port in ports} for ports in (metadata.inputs, metadata.outputs))
    first = next(iter(inputs.values())).dims[0]
    return Signature(inputs=inputs, outputs=outputs, rows=first if isinstance(first, int) else _ANY_NUMBER)


def _in_declared_ranks(signature: Signature, infer: Infer) -> Infer:
    """Sends one number a row as [B] where the server has declared that; `Signature.request` makes it [B, 1], which Triton needs."""
    ranks = {name: len(port.dims) for name, port in signature.inputs.items()}
    return lambda arrays: infer({name: array[:, 0] if array.ndim > ranks[name] else array for name, array in arrays.items()})


def _dtype(data_type: int) -> str:
    from tritonclient.grpc.model_config_pb2 import DataType

    return _numpy_name(DataType.Name(data_type).removeprefix("TYPE_").replace("STRING", "BYTES"))


def _numpy_name(datatype: str) -> str:
    """The protocol's name of a type in numpy's words."""
    from tritonclient.utils import triton_to_np_dtype

    name: str = np.dtype(triton_to_np_dtype(datatype)).name
    return name
