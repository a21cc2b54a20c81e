"""The denoising loop over any runner and any sampler, as a generator of steps.

Knows the names of the graphs' inputs and outputs, not what runs them. The same seed gives the same noise on every runner.
Shapes: B pictures, R rows: B, or with guidance 2B (unconditional first); C channels, H and W of the latents, N value neurons.
"""

from __future__ import annotations

__all__ = ["Pipeline", "Step", "check_size", "condition", "denoise", "generate", "guided", "latent_shape"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_edge.backends.base import Runner
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.conditioning import conditioning
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.noise import initial_noise
from nemo_edge.sampling.steps import open_steps
from nemo_edge.sampling.steptable import StepTable
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Advance


@dataclass(frozen=True)
class Pipeline:
    """The runners of a model's components and its configuration."""

    config: Configuration
    text: tuple[Runner, ...]
    unet: Runner
    vae: Runner
    eager: bool = False
    """PyTorch's modules, which take sizes that a graph of free sizes does not."""
    table: StepTable | None = None
    """The bundle's own steps, for where diffusers is not installed."""

    @property
    def masked(self) -> bool:
        """Whether the UNet takes a `value_mask`."""
        return VALUE_MASK in self.unet.inputs

    def encode(self, prompts: Sequence[str], pixel_size: tuple[int, int], unconditional: int = 0) -> dict[str, np.ndarray]:
        """The UNet's inputs that come from the prompts, each [B, …]; the first `unconditional` are what guidance leads away from."""
        ids = self.config.token_ids(prompts)
        outputs = [runner({"input_ids": i}) for runner, i in zip(self.text, ids, strict=True)]
        return conditioning(self.config, outputs, pixel_size, unconditional)

    def decoder_feed(self, latents_BCHW: np.ndarray) -> dict[str, np.ndarray]:
        """What the VAE's decoder is fed: the latents without the scaling they have in the loop, taken away as diffusers' pipelines do,
        of which none knows of a shift."""
        scaling, statistics = np.float32(self.config.vae["scaling_factor"]), self.config.latent_statistics
        if statistics is None:
            return {"latent_sample": latents_BCHW / scaling}
        mean_C11, std_C11 = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in statistics)
        return {"latent_sample": latents_BCHW * std_C11 / scaling + mean_C11}

    def decode(self, latents_BCHW: np.ndarray) -> np.ndarray:
        """Latents to pictures: uint8 [B, height, width, 3]."""
        pictures = self.vae(self.decoder_feed(latents_BCHW))["sample"]
        half = np.float32(0.5)  # in diffusers' order, whose rounding this is
        levels: np.ndarray = np.rint((pictures.transpose(0, 2, 3, 1) * half + half).clip(0, 1) * 255).astype(np.uint8)
        return levels


@dataclass(frozen=True)
class Step:
    """One step of the loop: the time, what the UNet was fed, its output for all rows, and the latents after the step."""

    index: int
    time: float
    feed: dict[str, np.ndarray]
    output_RCHW: np.ndarray
    latents_BCHW: np.ndarray


def guided(config: Configuration, settings: SamplingSettings) -> bool:
    """Whether a picture takes two rows of the UNet, one without the prompt; a UNet that is told the guidance takes one."""
    return settings.guidance > 1 and not config.guidance_width


def latent_shape(config: Configuration, settings: SamplingSettings) -> tuple[int, int, int]:
    """Channels, height and width of the latents of the pictures that `settings` ask for."""
    channels, height, width = config.latent_shape
    height = settings.height // config.factor if settings.height else height
    width = settings.width // config.factor if settings.width else width
    return channels, height, width


def check_size(config: Configuration, settings: SamplingSettings, free: Iterable[str]) -> None:
    """Raise `InputError` for a size that a graph cannot take, naming the nearest ones it can; `free` are its dimensions not pinned.

    A size that is not given is the model's own.
    """
    multiple, own = config.factor * config.latent_multiple, dict(zip(("height", "width"), config.pixel_size, strict=True))
    for name in free:
        pixels = getattr(settings, name) or own[name]
        if pixels % multiple:
            below = pixels // multiple * multiple
            raise InputError(
                f"{name} {pixels} is not a multiple of {multiple} pixels, which this UNet halves evenly: take {below or multiple} or "
                f"{(below or multiple) + multiple}, or build with export.{name} = {pixels}, which pins it"
            )


def condition(pipeline: Pipeline, prompts: Sequence[str], settings: SamplingSettings) -> dict[str, np.ndarray]:
    """Return the UNet's inputs that come from the prompts, each [R, …]: with guidance first the rows of no or the negative prompt.

    Without a negative prompt XL's unconditional rows are zeros where its checkpoint says so, as in diffusers.
    """
    batch, two = len(prompts), guided(pipeline.config, settings)
    _, height, width = latent_shape(pipeline.config, settings)
    size = (height * pipeline.config.factor, width * pipeline.config.factor)
    without = [settings.negative_prompt] * batch if two else []
    found = pipeline.encode([*without, *prompts], size, len(without))
    if two and not settings.negative_prompt and pipeline.config.index.get("force_zeros_for_empty_prompt"):
        for name in found.keys() & {"encoder_hidden_states", "text_embeds"}:
            found[name] = np.concatenate([np.zeros_like(found[name][:batch]), found[name][batch:]])
    return {**found, **pipeline.config.told_guidance(settings.guidance, batch)}


def denoise(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    mask: np.ndarray | None = None,
    conditioning: Mapping[str, np.ndarray] | None = None,
) -> Iterator[Step]:
    """Yield the steps that turn noise into the latents of `prompts`, one picture a prompt and seed.

    `mask` is [N] or [B, N] and goes to both rows of guidance, as the official code does. For a masked UNet it defaults
    to all ones. `conditioning` is what `condition` gave for these prompts and settings, where it was asked already.
    Raises `InputError` for a mask of the wrong width, for a UNet that takes none, for a size that does not fit, and as
    `open_steps` does.
    """
    check_size(
        pipeline.config, settings, [dim for dim in pipeline.unet.inputs["sample"][2:] if isinstance(dim, str) and not pipeline.eager]
    )
    steps = open_steps(pipeline.config, settings, seeds, pipeline.table)
    batch, two = len(prompts), guided(pipeline.config, settings)
    rows = 2 * batch if two else batch
    told = condition(pipeline, prompts, settings) if conditioning is None else conditioning
    feed = {**told, **_mask_feed(pipeline.unet, mask, batch, rows)}
    latents = steps.begin(latent_shape(pipeline.config, settings))
    for index, time in enumerate(steps.times):
        scaled = steps.fed(index, latents)
        sample = np.concatenate([scaled, scaled]) if two else scaled
        fed = {**feed, "sample": sample, "timestep": np.full(rows, time, np.float32)}
        output = pipeline.unet(fed)["out_sample"]
        latents = steps.after(index, _guided(output, settings.guidance) if two else output, latents)
        yield Step(index, time, fed, output, latents)


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    mask: np.ndarray | None = None,
    advance: Advance = lambda done: None,
    conditioning: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Make one picture a prompt and seed: uint8 [B, height, width, 3]. `advance` is told of the `steps` of every picture."""
    latents = initial_noise(seeds, latent_shape(pipeline.config, settings))
    for step in denoise(pipeline, prompts, seeds, settings, mask, conditioning):
        latents = step.latents_BCHW
        if step.index < settings.steps:  # some schedulers take more
            advance(len(prompts))
    return pipeline.decode(latents)


def _guided(output_RCHW: np.ndarray, guidance: float) -> np.ndarray:
    unconditional, conditional = np.split(output_RCHW, 2)
    guided_BCHW: np.ndarray = unconditional + np.float32(guidance) * (conditional - unconditional)
    return guided_BCHW


def _mask_feed(unet: Runner, mask: np.ndarray | None, batch: int, rows: int) -> dict[str, np.ndarray]:
    if VALUE_MASK not in unet.inputs:
        if mask is not None:
            raise InputError("this UNet is baked and takes no mask: use the masked variant of the bundle")
        return {}
    width = int(unet.inputs[VALUE_MASK][1] or 0)
    mask = np.ones(width, np.float32) if mask is None else np.asarray(mask, np.float32)
    if mask.shape not in ((width,), (batch, width)):
        raise InputError(f"the mask has shape {list(mask.shape)}, expected [{width}] or [{batch}, {width}] (pictures × value neurons)")
    mask_BN = np.broadcast_to(mask, (batch, width))
    return {VALUE_MASK: np.concatenate([mask_BN] * (rows // batch))}
