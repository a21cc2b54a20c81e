"""What a TensorRT engine's sidecar and the plan's own header say about it, without deserializing it.

Deserializing runs native code, and takes the very GPU and version that one wants to know about. Imports nothing of TensorRT.
"""

from __future__ import annotations

__all__ = ["Header", "PlanFile", "Shapes", "Tensor", "open_plan_file", "plans_of", "read_header"]

from collections.abc import Collection
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.recipe.targets import COMPUTE_CAPABILITIES, Flavour
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import Inside
from nemo_edge.system.reading import check_regular, read_bytes, read_json

_HEADER_BYTES = 64
"""`IRuntime.engine_header_size` of TensorRT-RTX 1.7."""

_MAGIC: dict[bytes, Flavour] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"}
"""First four bytes. That of TensorRT is from trtexec (`printPlanVersion` in samples/common/sampleEngines.cpp), as is the layout
that follows: a serialization version of 0 at byte 4, and at 24 four bytes, the version. TensorRT-RTX was measured to be the same."""
_MEASURED = (1, 7)
"""TensorRT-RTX whose plans have, as was measured, their length at byte 16 and their targets at byte 32; neither is documented."""
_PORTABLE_BITS = 0x7E
"""The targets of a portable engine: all but the lowest bit, which is sm75; each bit is one of `COMPUTE_CAPABILITIES`, in order."""
_LFS = b"version https://git-lfs"
_FETCH = "fetch it again, or build it again with `nemo-edge build`"

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Least, most usual and greatest shape of an input."""


class Tensor(BaseModel):
    """One input or output: its type in numpy's words and its dimensions (a number, or a name for any)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: str
    dims: tuple[int | str, ...]


class PlanFile(BaseModel):
    """The sidecar of a plan: what was compiled from what, for which GPUs and shapes, and how it is run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    component: str
    """Folder of the graph: text_encoder, unet, unet_masked, vae_decoder …"""
    backend: Flavour
    version: str
    """Version of TensorRT or TensorRT-RTX that built it, e.g. 1.7.1.116."""
    plan: Inside
    """Path of the plan inside the bundle."""
    size_bytes: int
    model: Inside
    """Path of the ONNX file inside the bundle."""
    graph_hash: str
    """One hash of the ONNX file and its external data."""
    targets: tuple[str, ...]
    """Compute capabilities, `sm86`; none for TensorRT-RTX's portable choice. The GPU it was built on for `tensorrt`."""
    built_on: str | None = None
    """Name of the GPU it was built on, for `tensorrt`."""
    hardware_compatibility: str | None = None
    """Enum member of `HardwareCompatibilityLevel`, for `tensorrt`."""
    system: str
    """Operating system it is for: Linux; for TensorRT-RTX, whose engines are portable, Linux and Windows."""
    dtype: Literal["fp32", "fp16", "bf16"]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    profiles: tuple[dict[str, Shapes], ...]
    """Least, most usual and greatest shape of each input."""
    flags: tuple[str, ...]
    """Names of the builder flags that were set."""
    settings: dict[str, str | int | bool | None]
    """Other settings of the builder and the runtime; enum members by name."""
    refittable: tuple[str, ...] = ()
    """Names of the weights that can be changed in the finished engine."""
    reproducible: bool
    """Whether the same inputs are sure to give the same bytes again. Plans of TensorRT-RTX 1.7 do for small graphs; those of the demo's
    UNets differ in some thousand bytes, of full size in some hundred, many of them digits in TensorRT's names of internal tensors
    (`benchmarks/results/full_size.json`)."""
    build_s: float


class Header(BaseModel):
    """What a plan says of itself in its first bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flavour: Flavour
    version: str
    """Of TensorRT or TensorRT-RTX, all four numbers."""
    size_bytes: int
    """Of the file."""
    targets: tuple[str, ...] | None = None
    """Compute capabilities, none for the portable choice; None where the header does not tell."""


def open_plan_file(path: Path) -> PlanFile:
    """Read a plan's sidecar. Raises `InputError` where there is none, `BundleError` for another file."""
    try:
        return PlanFile.model_validate_json(read_bytes(path, remedy="build the engine again"))
    except ValidationError as error:
        raise BundleError(f"{path} does not describe a plan: build the engine again") from error


def plans_of(bundle: Path, files: Collection[str], models: Collection[str]) -> dict[str, PlanFile]:
    """Return the plans among a bundle's `files` that were compiled of some of its ONNX files, by the names of their sidecars.

    Raises `BundleError` for a sidecar that describes none.
    """
    sidecars = [name for name in files if name.startswith("engines/") and name.endswith(".json")]
    flavours = get_args(Flavour)
    found = {name: open_plan_file(bundle / name) for name in sidecars if _backend(bundle / name) in flavours}
    return {name: plan for name, plan in found.items() if plan.model in models and plan.plan in files}


def _backend(path: Path) -> object:
    try:
        content = read_json(path)
    except InputError as error:
        raise BundleError(f"{path} does not describe an engine: build the bundle again") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} does not describe an engine: build the bundle again")
    return content.get("backend")


def read_header(path: Path) -> Header:
    """Read a plan's first bytes. Raises `InputError` for what is no plan, `BundleError` for a plan that is not whole."""
    check_regular(path, remedy="give the path of an engine, or build one with `nemo-edge build`")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): give the path of an engine") from error
    if start.startswith(_LFS):
        raise InputError(f"{path} is a Git LFS pointer and not the engine: fetch that with `git lfs pull`")
    flavour = _MAGIC.get(start[:4])
    if flavour is None:
        raise InputError(f"{path} is not a TensorRT engine (it starts with {start[:4]!r}): give a .plan or .engine file")
    if len(start) < _HEADER_BYTES:
        raise BundleError(f"{path} is cut short, it has {size} bytes: {_FETCH}")
    if _number(start, 4, 4) != 0:
        raise InputError(
            f"{path} is written in a form that this nemo-edge does not know (serialization {_number(start, 4, 4)}): upgrade it"
        )
    if flavour != "tensorrt-rtx" or tuple(start[24:26]) != _MEASURED:
        return Header(flavour=flavour, version=_dotted(start[24:28]), size_bytes=size)
    if _number(start, 16, 8) != size:
        raise BundleError(f"{path} is not whole, it has {size} bytes, and {_number(start, 16, 8)} by its header: {_FETCH}")
    return Header(flavour=flavour, version=_dotted(start[24:28]), size_bytes=size, targets=_targets(_number(start, 32, 4)))


def _targets(bits: int) -> tuple[str, ...] | None:
    if bits == _PORTABLE_BITS:
        return ()
    names = list(COMPUTE_CAPABILITIES)
    return tuple(name for bit, name in enumerate(names) if bits >> bit & 1) if 0 < bits < 1 << len(names) else None


def _number(start: bytes, offset: int, length: int) -> int:
    return int.from_bytes(start[offset : offset + length], "little")


def _dotted(numbers: bytes) -> str:
    return ".".join(map(str, numbers))
