"""What runs a bundle, and what TensorRT engines are built for: GPUs, sizes, and how they are run. Part of the recipe.

Knows names and ranges; nothing of TensorRT itself, so that a wrong target is refused where no TensorRT is installed.
"""

from __future__ import annotations

__all__ = [
    "COMPUTE_CAPABILITIES",
    "FLAVOUR_OF",
    "PORTABLE",
    "EngineSettings",
    "Flavour",
    "PlanSettings",
    "ProfileSettings",
    "Range",
    "Rival",
    "TensorRtRtxSettings",
    "TensorRtSettings",
    "target_name",
    "uncompiled",
    "unfit_for_turing",
]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Flavour = Literal["tensorrt", "tensorrt-rtx"]
"""The standard product (10.x, 11.x), and the one for RTX GPUs that compiles ahead of time without a GPU."""

FLAVOUR_OF: dict[str, Flavour] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
"""Table of a recipe → the flavour it is about."""

COMPUTE_CAPABILITIES = {
    "sm75": "Turing: GTX 16, RTX 20, T4",
    "sm80": "Ampere: A100, A30",
    "sm86": "Ampere: RTX 30, A10, A40",
    "sm89": "Ada: RTX 40, L4, L40",
    "sm120": "Blackwell: RTX 50, RTX PRO",
    "sm121": "Blackwell: DGX Spark",
}
"""What TensorRT-RTX 1.7 compiles for (`trt.ComputeCapability`), and which GPUs those are. Hopper (sm90) is not among them."""

PORTABLE = "portable"
"""Target name of an engine for which no compute capability was chosen: TensorRT-RTX takes 8.0, 8.6, 8.9, 12.0 and later then."""


Rival = Literal["eager bf16", "onnxruntime", "openvino fp32", "openvino bf16", "openvino fp16"]
"""What may be timed beside a recipe's own engines."""


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class EngineSettings(_Settings):
    """What runs the bundle here."""

    backend: Literal["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"] = "onnxruntime"
    """ONNX Runtime or OpenVINO, which run the ONNX files; or the engines that the recipe's table of that name compiles."""
    provider: Literal["cpu", "cuda", "tensorrt"] = "cpu"
    """ONNX Runtime's."""
    device: Literal["cpu", "gpu", "npu"] = "cpu"
    """OpenVINO's: the CPU, or an Intel GPU or NPU."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """What OpenVINO computes in, whatever the type of the ONNX files (`export.dtype`) is."""
    cache: bool = True
    """Keep what OpenVINO compiled in the user's cache folder, as large as the weights, for the next start."""
    threads: int | None = Field(default=None, ge=1, le=4096)
    """On the CPU; all of its cores where not given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        theirs = ("device", "precision", "cache")
        changed = next((name for name in theirs if getattr(self, name) != type(self).model_fields[name].default), None)
        if changed and self.backend != "openvino":
            raise ValueError(
                f"engine.{changed} = {getattr(self, changed)!r} is OpenVINO's: add engine.backend = 'openvino', or leave it out"
                + ("; other backends compute in the type of the ONNX files, export.dtype" if changed == "precision" else "")
            )
        if self.backend == "openvino" and self.provider != "cpu":
            raise ValueError(f"engine.provider = {self.provider!r} is ONNX Runtime's: say engine.device for OpenVINO")
        return self

    @property
    def flavour(self) -> Flavour | None:
        """The product whose engines are run; None for what runs the ONNX files themselves."""
        return self.backend if self.backend in ("tensorrt", "tensorrt-rtx") else None

    @property
    def torch_device(self) -> Literal["cpu", "cuda"]:
        """What eager PyTorch runs on beside it, in PyTorch's words: a GPU of NVIDIA's where this runs on one."""
        return "cpu" if self.flavour is None and self.provider == "cpu" else "cuda"


def _three(value: object) -> object:
    """A number stands for three times itself."""
    return (value, value, value) if isinstance(value, int) and not isinstance(value, bool) else value


Range = Annotated[tuple[int, int, int], BeforeValidator(_three, json_schema_input_type=int | tuple[int, int, int])]
"""Least, most usual, and greatest value; one number where it never changes."""


class ProfileSettings(_Settings):
    """One optimization profile: the requests a plan takes, and the one it is fastest at."""

    batch: Range = (1, 1, 4)
    """Pictures at once. The UNet's batch has two rows for each, one with and one without the prompt (guidance)."""
    height: Range | None = None
    """Pixels; the model's own height where it is not given."""
    width: Range | None = None
    """Pixels; the model's own width where it is not given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("batch", "height", "width"):
            values = getattr(self, name)
            if values is None:
                continue
            least, usual, greatest = values
            if not 1 <= least <= usual <= greatest:
                raise ValueError(f"{name} = [{least}, {usual}, {greatest}]: give least, usual and greatest value in this order")
            if name != "batch" and any(value % 8 for value in values):
                raise ValueError(f"{name} = [{least}, {usual}, {greatest}]: sizes are multiples of 8 pixels")
        return self


class PlanSettings(_Settings):
    """What the engines of both flavours have in common."""

    components: tuple[str, ...] | None = None
    """Folders of the graphs to compile (text_encoder, unet, unet_masked, vae_decoder …); all of the bundle where not given."""
    profiles: tuple[ProfileSettings, ...] = Field(default=(ProfileSettings(),), min_length=1)
    """The requests that an engine takes, a table each. More of them make the engine larger, and each faster at its own sizes."""
    cuda_graphs: bool = True
    """Record the work of a shape once and replay it."""


def _capability(value: Any) -> Any:
    if isinstance(value, str) and value not in COMPUTE_CAPABILITIES:
        raise ValueError(f"TensorRT-RTX does not compile for {value!r}; it does for {', '.join(COMPUTE_CAPABILITIES)}")
    return value


class TensorRtRtxSettings(PlanSettings):
    """Engines compiled ahead of time, without a GPU, and finished on the user's GPU when they are first run."""

    targets: tuple[Annotated[str, BeforeValidator(_capability), Field(json_schema_extra={"enum": list(COMPUTE_CAPABILITIES)})], ...] = ()
    """Compute capabilities (`sm86`), one engine for all of them; TensorRT-RTX's portable choice where none is given."""
    kernel_specialization: Literal["lazy", "eager", "none"] = "lazy"
    """When kernels are compiled for the very shapes in use: in the background, at once, or never."""
    runtime_cache: bool = True
    """Keep the kernels that were compiled on the user's GPU, on disk, for the next start."""

    @field_validator("targets")
    @classmethod
    def _check_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(targets)) < len(targets):
            raise ValueError("a compute capability is named twice")
        return tuple(sorted(targets, key=list(COMPUTE_CAPABILITIES).index))


class TensorRtSettings(PlanSettings):
    """Engines built on the GPU at hand."""

    optimization_level: int = Field(default=3, ge=0, le=5)
    """How many ways of computing the compiler tries: higher takes longer to build, and runs as fast or faster."""
    hardware_compatibility: Literal["none", "ampere_plus", "same_compute_capability"] = "none"
    """Which other GPUs the engine runs on than the one it is built on."""
    version_compatible: bool = False
    """Let the engine run in later versions of the same major version; it carries a lean runtime with it."""
    weight_streaming: bool = False
    """Let the weights stay in host memory as far as the GPU has no room for them."""
    refit: Literal["none", "value_weights", "all"] = "none"
    """Which weights can be changed in the finished engine: none, those of the value layers (`nemo-edge rebake`), all."""
    timing_cache: Path | None = None
    """File that keeps the times of kernels, read and written, so that the next build is faster."""


def uncompiled(flavour: Flavour, settings: PlanSettings | None, places: Sequence[str]) -> str:
    """Say which of the components at `places` the recipe compiles no engine of, in the recipe's words; nothing where it compiles all."""
    table = next(name for name, value in FLAVOUR_OF.items() if value == flavour)
    if settings is None:
        return f"engine.backend = {flavour!r} runs engines that the table [{table}] builds: add it, or take 'onnxruntime'"
    missing = [place for place in places if settings.components is not None and place not in settings.components]
    if not missing:
        return ""
    return f"engine.backend = {flavour!r} needs engines of {', '.join(missing)} too: add them to {table}.components, or leave that out"


def unfit_for_turing(settings: PlanSettings, dtypes: Mapping[str, str]) -> str:
    """Say which of some components TensorRT-RTX does not compile for Turing, which multiplies fp16 alone; nothing where it does all."""
    if not isinstance(settings, TensorRtRtxSettings) or "sm75" not in settings.targets:
        return ""
    wide = [place for place, dtype in dtypes.items() if dtype != "fp16" and (settings.components is None or place in settings.components)]
    if not wide:
        return ""
    return (
        f"tensorrt_rtx.targets: TensorRT-RTX compiles no {dtypes[wide[0]]} for sm75 (Turing), and {wide[0]} is {dtypes[wide[0]]}: "
        f"leave {wide[0]} out of tensorrt_rtx.components, or sm75 out of its targets"
    )


def target_name(targets: Sequence[str]) -> str:
    """Return the part of a file's name that says which GPUs an engine is for."""
    return "+".join(targets) or PORTABLE
