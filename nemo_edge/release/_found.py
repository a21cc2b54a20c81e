"""What a checkpoint is, as far as a recipe for it needs to know, and how pictures are drawn with its kind.

Reads configurations and shapes; no weight is read, nothing is run.
"""

from __future__ import annotations

__all__ = ["Found", "Sampler", "kind_of", "look", "sampler_of"]

from typing import Literal

from pydantic import BaseModel, ConfigDict

from nemo_edge.model.configuration import LCM_PIPELINE, Configuration
from nemo_edge.model.inspection import check_layers
from nemo_edge.model.marker import is_random
from nemo_edge.recipe.settings import CheckpointSettings, SamplingSettings
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import checkpoint_folder

_KINDS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
"""By the width of what the UNet reads of a prompt."""
_CONSISTENCY = SamplingSettings(scheduler="lcm", steps=4, guidance=8.0)
_FEW = SamplingSettings(steps=2, guidance=1.0)
_OWN = {"sd": SamplingSettings(steps=30, guidance=7.5), "sdxl": SamplingSettings(steps=30, guidance=5.0)}
_USUAL = {family: own.model_copy(update={"scheduler": "dpmsolver++", "steps": 25}) for family, own in _OWN.items()}
"""Of each family, the guidance that diffusers' own pipeline has by default."""


class Sampler(BaseModel):
    """How pictures are drawn with a model of this kind, and why so."""

    model_config = ConfigDict(frozen=True)

    settings: SamplingSettings
    why: str


class Found(BaseModel):
    """A checkpoint in words and numbers."""

    model_config = ConfigDict(frozen=True)

    source: str
    kind: str
    pipeline: str
    predicts: str
    """What the UNet predicts: "epsilon", "v_prediction" or "sample"."""
    height: int
    """Pixels of the pictures that it was trained on; the same for the width."""
    width: int
    parameters: dict[str, int]
    """Of each part."""
    text_encoders: tuple[tuple[int, int], ...]
    """Width and most tokens of each."""
    layers: Literal["paper", "all"]
    """The value layers in which memorization neurons are searched: the paper's where it has some."""
    value_layers: int
    neurons: int
    scheduler: str
    """The class of its own scheduler."""
    sampler: Sampler
    notes: tuple[str, ...] = ()
    """What was assumed of a single file: a line each."""


def look(source: CheckpointSettings) -> Found:
    """Look at a checkpoint. Raises `InputError` for one that a build does not take, and for a UNet without value neurons."""
    local = checkpoint_folder(source.path)
    name = is_random(local)
    if name is not None:
        raise InputError(f"checkpoint {source.path} carries random weights ({name}), in which nothing is memorized: give a trained one")
    from nemo_edge.model.checkpoint import open_parts, value_layers

    opened = open_parts(source)
    config = opened.config
    layers = _layers(config)
    found = value_layers(opened.unet, layers)
    modules = {component.name: component.module for component in opened.components()}
    height, width = config.pixel_size
    return Found(
        source=source.path,
        kind=kind_of(config),
        pipeline=str(config.index["_class_name"]),
        predicts=config.prediction_type,
        height=height,
        width=width,
        parameters={part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()},
        text_encoders=tuple((int(e["hidden_size"]), int(e["max_position_embeddings"])) for e in config.text_encoders),
        layers=layers,
        value_layers=len(found),
        neurons=sum(layer.width for layer in found),
        scheduler=str(config.scheduler.get("_class_name")),
        sampler=sampler_of(config),
        notes=opened.notes,
    )


def sampler_of(config: Configuration) -> Sampler:
    """Return what a model is drawn with, by its UNet and its own scheduler. Raises `InputError` for one that diffusers has none for."""
    from nemo_edge.sampling.schedulers import scheduled

    found = _chosen(config)
    scheduled(config, found.settings)
    return found


def _chosen(config: Configuration) -> Sampler:
    own = config.scheduler
    name = str(own.get("_class_name"))
    if config.guidance_width or config.index["_class_name"] == LCM_PIPELINE:
        return Sampler(settings=_CONSISTENCY, why="its UNet is told the guidance, as that of a consistency model, which takes few steps")
    if name == "LCMScheduler":
        return Sampler(settings=_CONSISTENCY.model_copy(update={"guidance": 1.0}), why="its scheduler is that of models of few steps")
    if own.get("rescale_betas_zero_snr"):
        return Sampler(settings=_OWN[config.family], why="its noise schedule ends in pure noise, so its own scheduler is kept")
    if name.startswith("Euler") and own.get("timestep_spacing") == "trailing":
        return Sampler(settings=_FEW, why="its scheduler is that of distilled models, drawn in 1 to 4 steps; if it is none: 25 and 7.5")
    return Sampler(settings=_USUAL[config.family], why="dpmsolver++ needs fewer steps than most schedulers, 20 to 30")


def kind_of(config: Configuration) -> str:
    """Return what a model is called."""
    told = ", a consistency model (LCM)" if config.guidance_width else ""
    if config.family == "sdxl":
        return f"Stable Diffusion XL{told}"
    width = config.unet["cross_attention_dim"]
    return f"{_KINDS.get(width, 'Stable Diffusion 1.x or 2.x') if isinstance(width, int) else 'Stable Diffusion 1.x or 2.x'}{told}"


def _layers(config: Configuration) -> Literal["paper", "all"]:
    """The paper's layers; all where it has none of these. Raises `InputError` for a UNet without any."""
    try:
        check_layers(config.unet, "paper")
    except InputError:
        check_layers(config.unet, "all")
        return "all"
    return "paper"
