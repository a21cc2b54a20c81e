"""The settings of quantization: in how few bits a bundle's graphs keep their weights and compute."""

from __future__ import annotations

__all__ = ["LIMITS", "SHARES", "Limits", "QuantizationSettings", "Scheme", "unfit"]

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, field_validator

from nemo_edge.recipe.limits import Count
from nemo_edge.recipe.settings import Settings
from nemo_edge.recipe.targets import EngineSettings, TensorRtRtxSettings

Scheme = Literal["int8", "int8_weights", "int4_weights", "fp8"]
SHARES = (1.0, 0.99999, 0.9999, 0.999)
"""Of a tensor's values: those that a limit of its range may leave inside. 1 is the largest value seen."""


class QuantizationSettings(Settings):
    """Which graphs are quantized, and how; nothing is, unless the recipe has this table."""

    scheme: Scheme = "int8"
    """`int8`: weights and activations of convolutions and matrix products in 8-bit integers; `int8_weights` and `int4_weights`: weights
    alone, so that files are smaller; `fp8`: both in 8-bit floats (E4M3), which TensorRT runs on Ada and Blackwell alone."""
    components: tuple[Literal["unet"], ...] = Field(default=("unet",), min_length=1)
    """Which components; the UNet holds nine tenths of the work."""
    prompts: int = Field(default=16, ge=1)
    """General prompts whose pictures are drawn, from noise to picture, to find the ranges of activations; fewer where `calls` end."""
    calls: Count = 200
    """Of the UNet, so many at the most for it: as every step of a picture is seen, four pictures of 50 steps, but always one."""
    range: Literal["least error", "largest", "99.999 %", "99.99 %", "99.9 %"] = "least error"
    """Where the range of an activation ends: at the largest value seen, at the magnitude that so much of the values stay below, or at
    whichever of these rounds with the least error."""
    keep: tuple[str, ...] = ()
    """Modules that stay as they are, by a part of their path (`up_blocks.3.`), beside those that always do."""
    error: float = Field(default=0.2, gt=0)
    """A module whose output rounding alone is estimated to change by more than this, relative to its size, stays as it is."""
    block: int = Field(default=32, ge=16, multiple_of=16)
    """Of `int4_weights`: so many weights of a matrix product share a scale."""
    ranges: Path | None = None
    """A finished file of ranges (`ranges.json` of a bundle); nothing is drawn then."""

    @field_validator("keep")
    @classmethod
    def _check_keep(cls, keep: tuple[str, ...]) -> tuple[str, ...]:
        if any(not part.strip() for part in keep):
            raise ValueError("a part of a path is empty, which every module has")
        return keep

    def drawn(self, steps: int) -> int:
        """How many prompts' pictures are drawn, each of so many steps."""
        return min(self.prompts, max(1, self.calls // steps))

    @property
    def activations(self) -> bool:
        """Whether activations are quantized, too, so that their ranges matter."""
        return self.scheme in ("int8", "fp8")

    @property
    def finds_ranges(self) -> bool:
        """Whether their ranges are found by drawing, as no file has them."""
        return self.activations and self.ranges is None


class Limits(NamedTuple):
    """What a quantized engine may differ by where a recipe says nothing."""

    engine_error: float
    """From eager float32, fed the same at each step, relative to the largest value."""
    mitigation_agreement: float
    """Of a prompt's score or copy distance."""


LIMITS: dict[Scheme, Limits] = {
    "int8": Limits(0.2, 0.1),
    "int8_weights": Limits(0.05, 0.05),
    "int4_weights": Limits(0.5, 0.2),
    "fp8": Limits(0.3, 0.1),
}
"""Two to three times what the demo's engines differ by in ONNX Runtime (0.09 and 0.03 for int8); those of fp8 are int8's and a half, since
no engine of it was run."""

_LACKS: dict[Scheme, tuple[str, ...]] = {"fp8": ("sm75", "sm80", "sm86")}
"""What TensorRT-RTX 1.7 does not compile for which GPUs."""
_PORTABLE = ("sm80", "sm86", "sm89", "sm120")
"""What it compiles for where no target is given."""
_TURING = ("sm75",)
"""It compiles no float32 for Turing, which all but the UNet stays in."""


def unfit(
    settings: QuantizationSettings, dtype: str, opset: int, engine: EngineSettings, rtx: TensorRtRtxSettings | None, compiled: bool
) -> str:
    """Say what of a recipe does not go with its quantization, and the remedy; nothing where all does."""
    if dtype != "fp32":
        remedy = "[quantization] rounds float32 files, and makes float16 ones for TensorRT by itself: leave export.dtype out"
        return f"export.dtype = {dtype!r}: {remedy}"
    least = 21 if settings.scheme == "int4_weights" else 19 if settings.scheme == "fp8" or compiled else 18
    if opset < least:
        return f"export.opset = {opset} has no operators for quantization.scheme = {settings.scheme!r}: leave it out, or take {least} on"
    if engine.backend == "onnxruntime" and engine.provider != "cpu":
        return (
            f"engine.provider = {engine.provider!r}: quantized files are for ONNX Runtime on the CPU, OpenVINO and TensorRT: leave it out, "
            "or take engine.backend = 'tensorrt' or 'tensorrt-rtx'"
        )
    lacking = [target for target in ((rtx.targets or _PORTABLE) if rtx else ()) if target in _LACKS.get(settings.scheme, _TURING)]
    if lacking:
        return (
            f"tensorrt_rtx.targets: TensorRT-RTX compiles no bundle in {settings.scheme} for {', '.join(lacking)}, alone or with others: "
            "leave it out of the targets" + (", or take quantization.scheme = 'int8'" if settings.scheme == "fp8" else "")
        )
    if settings.scheme == "fp8" and engine.flavour is None:
        return f"quantization.scheme = 'fp8' is run by TensorRT alone, and engine.backend is {engine.backend!r}: take 'int8', or that"
    return ""
