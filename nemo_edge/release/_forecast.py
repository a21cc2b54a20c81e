"""What a build is made from and what it takes, in numbers, from what the one look before it saw.

Estimates memory and disk as `_footprint` does; of a stage's time it knows what it took here before, and nothing else.
"""

from __future__ import annotations

__all__ = ["Forecast", "Room", "forecast"]

from pydantic import BaseModel, ConfigDict

from nemo_edge.recipe.recipe import Recipe
from nemo_edge.release._cache import times_of
from nemo_edge.release._footprint import Footprint
from nemo_edge.release._preflight import Preflight
from nemo_edge.release._stages import stages_of


class Room(BaseModel):
    """Memory and disk that a build takes, estimated, beside what is free."""

    model_config = ConfigDict(frozen=True)

    parameters: dict[str, int]
    """Of each part of the model."""
    memory_bytes: dict[str, int]
    """Peak of memory while it localizes, exports, measures, and where it does finds ranges to quantize."""
    memory_free_bytes: int
    disk_bytes: int
    """The bundle, and the results of stages that are kept beside it."""
    disk_free_bytes: int
    disk: str
    """The folder whose disk was asked."""


class Forecast(BaseModel):
    """What a build is made from, and what it takes; nothing of prompts for random weights, and of room for a bundle that is up to date."""

    model_config = ConfigDict(frozen=True)

    checkpoint: str
    memorized: int
    """Memorized prompts that are used."""
    with_pictures: int
    """Those of them whose training picture is known."""
    calibrating: int
    """General prompts that calibrate."""
    held_out: int
    """General prompts that are drawn."""
    height: int | None
    """Of the pictures, in pixels; the same for the width."""
    width: int | None
    steps: int
    guidance: float
    seeds: int
    """Pictures of each memorized prompt."""
    room: Room | None
    does: dict[str, str]
    """What each stage does, in a few words."""
    seconds: dict[str, float]
    """What a stage took when it last ran whole for this bundle, with whatever settings and inputs."""


def forecast(seen: Preflight) -> Forecast:
    """Return what a build is made from and what it takes."""
    recipe, inputs = seen.recipe, seen.inputs
    memorized = inputs.memorized if inputs else []
    height, width = seen.size or (None, None)
    return Forecast(
        checkpoint=recipe.checkpoint.path if recipe.random_weights is None else f"random weights of {recipe.random_weights.name}",
        memorized=len(memorized),
        with_pictures=sum(prompt.image is not None for prompt in memorized),
        calibrating=len(inputs.general) if inputs else 0,
        held_out=len(inputs.held_out) if inputs else 0,
        height=height,
        width=width,
        steps=recipe.sampling.steps,
        guidance=recipe.sampling.guidance,
        seeds=recipe.fidelity.seeds,
        room=_room(recipe, seen.footprint) if seen.footprint else None,
        does={stage.name: stage.does for stage in stages_of(recipe) if stage.key is not None},
        seconds=times_of(recipe.output),
    )


def _room(recipe: Recipe, footprint: Footprint) -> Room:
    dtype = "fp32" if recipe.export.dtype == "fp32" else "fp16"
    need = next(n for n in footprint.needs if (n.dtype, n.variants) == (dtype, len(recipe.export.variants)))
    peaks = {"localize": need.localize_bytes, "export": need.export_bytes, "measure": need.measure_bytes}
    if recipe.random_weights is not None:
        peaks = {"export": need.export_bytes}
    if recipe.quantization is not None and recipe.quantization.finds_ranges:
        peaks["quantize"] = need.ranges_bytes
    return Room(
        parameters={part.name: part.parameters for part in footprint.parts},
        memory_bytes=peaks,
        memory_free_bytes=footprint.memory_available_bytes,
        disk_bytes=need.disk_bytes,
        disk_free_bytes=footprint.disk_free_bytes,
        disk=footprint.output,
    )
