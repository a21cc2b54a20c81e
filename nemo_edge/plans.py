"""What a TensorRT engine's sidecar and the plan's own header say about it, without deserializing it.

Deserializing runs native code, and takes the very GPU and version that one wants to know about. Imports nothing of TensorRT.
"""

from __future__ import annotations

__all__ = ["PlanFile", "Shapes", "Tensor", "open_plan_file"]

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.errors import BundleError, InputError
from nemo_edge.targets import Flavour

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
    plan: str
    """Path of the plan inside the bundle."""
    size_bytes: int
    model: str
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
    """Whether the same inputs give the same bytes again."""
    build_s: float


def open_plan_file(path: Path) -> PlanFile:
    """Read a plan's sidecar. Raises `InputError` where there is none, `BundleError` for another file."""
    try:
        return PlanFile.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: build the engine again") from error
    except ValidationError as error:
        raise BundleError(f"{path} does not describe a plan: build the engine again") from error
