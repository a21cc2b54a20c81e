"""`config.pbtxt` of each shipped model, as a message of Triton's own schema: written by protobuf, and read back before it counts.

Knows signatures, plans and names; nothing of where files go.
"""

from __future__ import annotations

__all__ = [
    "CONFIG",
    "KEPT",
    "Service",
    "engine_config",
    "engine_signature",
    "pipeline_config",
    "read_config",
    "recorded_version",
    "write_config",
]

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from nemo_edge.backends.tensorrt.plans import PlanFile, Tensor
from nemo_edge.backends.tensorrt.profiles import rows_of_a_picture
from nemo_edge.backends.triton import Signature
from nemo_edge.serving.requests import INPUTS
from nemo_edge.serving.versions import ServerBackend
from nemo_edge.system.errors import InputError, MissingDependency, first_line
from nemo_edge.system.files import number_of, write_atomically
from nemo_edge.system.reading import read_text

CONFIG: Final = "config.pbtxt"
"""The file in which a model says how it is served."""

KEPT: Final = 2
"""Versions of a component that are served at once: a picture that was begun is finished by the version that began it."""

ROWS = 16
"""Most rows of a request to a component whose graph takes any number: eight pictures with guidance."""

_FLOATS = ("float32", "float16", "bfloat16")
_PRECISE = "float32"


@dataclass(frozen=True)
class Service:
    """How a model is served: by what, where, with what in `parameters`."""

    name: str
    component: str
    """What it is of a model, whatever it is called."""
    backend: ServerBackend
    on_gpu: bool
    parameters: Mapping[str, str]


def engine_signature(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], backend: ServerBackend, rows: int | None) -> Signature:
    """Return what a component is served as: our runners take and give float32 and any batch, a native backend what the graph has.

    `rows` are the most that its engine takes, None for any. Raises `InputError` for bfloat16, which no client has a type for.
    """
    if backend == "python":
        ports = [
            {name: Tensor(dtype=_wide(t.dtype), dims=("batch", *t.dims[1:])) for name, t in group.items()} for group in (inputs, outputs)
        ]
        return Signature(inputs=ports[0], outputs=ports[1], rows=rows or ROWS)
    if any(tensor.dtype == "bfloat16" for tensor in (*inputs.values(), *outputs.values())):
        raise InputError("clients have no type for bfloat16, which these graphs take: ship with --backend python, or build in fp16")
    pinned = next(iter(inputs.values())).dims[0]
    return Signature(inputs=dict(inputs), outputs=dict(outputs), rows=pinned if isinstance(pinned, int) else rows or ROWS)


def engine_config(service: Service, signature: Signature, latents: tuple[int, int], plans: Sequence[PlanFile] = ()) -> Any:
    """Return the `ModelConfig` of a component; `latents` are the height and width its warm-up takes, `plans` those of native TensorRT."""
    pb, batched = _schema(), signature.pinned is None
    config = pb.ModelConfig(name=service.name, backend=service.backend, max_batch_size=signature.rows if batched else 0)
    for name, tensor in signature.inputs.items():
        _port(config.input.add(), name, tensor, batched)
    for name, tensor in signature.outputs.items():
        _port(config.output.add(), name, tensor, batched)
    if batched:
        config.dynamic_batching.SetInParent()
    config.version_policy.latest.num_versions = KEPT
    group = config.instance_group.add(count=1, kind=_kind(service, pb))
    group.profile.extend(_profiles(plans))
    for name, capability in _plan_names(plans):
        if capability:
            config.cc_model_filenames[capability] = name
        else:
            config.default_model_filename = name
    _warm_up(config, signature, rows_of_a_picture(service.component), latents)
    _parameters(config, service.parameters)
    return config


def pipeline_config(service: Service, instances: int) -> Any:
    """Return the `ModelConfig` of the pipeline; `instances` is how many requests it draws at once.

    It has no warm-up: the models it calls may be loaded after it, and have their own.
    """
    pb = _schema()
    config = pb.ModelConfig(name=service.name, backend="python", max_batch_size=0)
    for name, dtype in INPUTS.items():
        dims = [-1] if name in ("prompt", "seed") else [1]
        config.input.add(name=name, data_type=_data_type(dtype), dims=dims, optional=name != "prompt")
    config.output.add(name="image", data_type=_data_type("uint8"), dims=[-1, -1, -1, 3])
    config.output.add(name="score", data_type=_data_type("float32"), dims=[-1])
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(count=instances, kind=pb.ModelInstanceGroup.KIND_CPU)
    _parameters(config, service.parameters)
    return config


def write_config(path: Path, config: Any) -> None:
    """Write a configuration, atomically, once protobuf reads back from the text what it was written from."""
    text_format = _text_format()
    text = text_format.MessageToString(config)
    if text_format.Parse(text, type(config)()) != config:
        raise InputError(f"{path} does not read back as it was written: report this")
    write_atomically(path, text)


def read_config(path: Path) -> Any:
    """Read a `config.pbtxt`. Raises `InputError`, with line and column, for text that Triton's schema does not take."""
    text_format = _text_format()
    try:
        return text_format.Parse(read_text(path), _schema().ModelConfig())
    except (InputError, RecursionError, ValueError, text_format.ParseError) as error:
        raise InputError(f"{path} is no configuration of a Triton model: {first_line(error)}") from error


def recorded_version(config: Any) -> int:
    """Return the number of the last version shipped, as a configuration records it; 0 for one that is not ours."""
    return number_of(config.parameters["version"].string_value) if "version" in config.parameters else 0


def _schema() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise MissingDependency("shipping needs tritonclient, which has Triton's schema: `pip install 'nemo-edge[serve]'`") from error
    return model_config_pb2


def _text_format() -> Any:
    _schema()
    from google.protobuf import text_format

    return text_format


def _wide(dtype: str) -> str:
    return _PRECISE if dtype in _FLOATS else dtype


def _port(port: Any, name: str, tensor: Tensor, batched: bool) -> None:
    """Fill in an input or output; one number a row is [1] on the wire, since Triton has no rank of 0."""
    dims = [dim if isinstance(dim, int) else -1 for dim in (tensor.dims[1:] if batched else tensor.dims)]
    port.name, port.data_type = name, _data_type(tensor.dtype)
    port.dims.extend(dims or [1])
    if not dims:
        port.reshape.SetInParent()


def _data_type(dtype: str) -> int:
    from tritonclient.utils import np_to_triton_dtype

    name = "STRING" if dtype == "object" else str(np_to_triton_dtype(np.dtype(dtype)))
    return int(_schema().DataType.Value(f"TYPE_{name}"))


def _kind(service: Service, pb: Any) -> int:
    if not service.on_gpu:
        return int(pb.ModelInstanceGroup.KIND_CPU)
    return int(pb.ModelInstanceGroup.KIND_MODEL if service.backend == "python" else pb.ModelInstanceGroup.KIND_GPU)


def _profiles(plans: Sequence[PlanFile]) -> list[str]:
    """All profiles of a plan: Triton takes the first alone where none is named."""
    count = max((len(plan.profiles) for plan in plans), default=0)
    return [str(index) for index in range(count)] if count > 1 else []


def _plan_names(plans: Sequence[PlanFile]) -> Iterable[tuple[str, str]]:
    """The file of each plan for each compute capability, "8.9"; of a plan for more than its own, for any."""
    for plan in plans:
        name = Path(plan.plan).name
        if plan.hardware_compatibility != "AMPERE_PLUS":
            yield from ((name, f"{target[2:-1]}.{target[-1]}") for target in plan.targets)
        else:
            yield name, ""


def _warm_up(config: Any, signature: Signature, most: int, latents: tuple[int, int]) -> None:
    """One entry for each number of rows that a picture takes: with guidance, and without."""
    pb, pinned = _schema(), signature.pinned
    for rows in sorted({1, min(most, signature.rows)}) if pinned is None else [0]:
        entry = config.model_warmup.add(name=f"{rows or pinned} rows", batch_size=rows)
        for port in config.input:
            sizes = iter(latents)
            dims = [dim if dim > 0 else next(sizes) for dim in port.dims]
            entry.inputs[port.name].CopyFrom(pb.ModelWarmup.Input(data_type=port.data_type, dims=dims, zero_data=True))


def _parameters(config: Any, parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        config.parameters[name].string_value = value
