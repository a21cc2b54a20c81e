"""The denoising loop over any runner and any of diffusers' schedulers, as a generator of steps.

Knows the names of the graphs' inputs and outputs, not what runs them. The same seed gives the same noise on every runner.
Shapes: B pictures, R = 2B rows of guidance (unconditional first), C channels, H and W of the latents, N value neurons.
"""

from __future__ import annotations

__all__ = ["Pipeline", "Step", "check_size", "condition", "denoise", "generate", "initial_noise", "latent_shape", "make_scheduler"]

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nemo_edge.backends.base import Runner
from nemo_edge.model.checkpoint import conditioning
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Advance


@dataclass(frozen=True)
class Pipeline:
    """The runners of a model's components and its configuration."""

    config: Configuration
    text: tuple[Runner, ...]
    unet: Runner
    vae: Runner

    @property
    def masked(self) -> bool:
        """Whether the UNet takes a `value_mask`."""
        return VALUE_MASK in self.unet.inputs

    def encode(self, prompts: Sequence[str], pixel_size: tuple[int, int]) -> dict[str, np.ndarray]:
        """The UNet's inputs that come from the prompts, each [B, …]."""
        ids = self.config.token_ids(prompts)
        outputs = [runner({"input_ids": i}) for runner, i in zip(self.text, ids, strict=True)]
        return conditioning(self.config.family, outputs, pixel_size)

    def decoder_feed(self, latents_BCHW: np.ndarray) -> dict[str, np.ndarray]:
        """What the VAE's decoder is fed: the latents without the scaling they have in the loop, taken away as diffusers' pipelines do.

        Of mean and deviation only XL's knows, and of a shift none.
        """
        vae, scaling = self.config.vae, np.float32(self.config.vae["scaling_factor"])
        mean, std = (vae.get(key) if self.config.family == "sdxl" else None for key in ("latents_mean", "latents_std"))
        if mean is None or std is None:
            return {"latent_sample": latents_BCHW / scaling}
        mean_C11, std_C11 = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (mean, std))
        return {"latent_sample": latents_BCHW * std_C11 / scaling + mean_C11}

    def decode(self, latents_BCHW: np.ndarray) -> np.ndarray:
        """Latents to pictures: uint8 [B, height, width, 3]."""
        pictures = self.vae(self.decoder_feed(latents_BCHW))["sample"]
        return np.rint((pictures.transpose(0, 2, 3, 1).clip(-1, 1) + 1) * 127.5).astype(np.uint8)


@dataclass(frozen=True)
class Step:
    """One step of the loop: the time, what the UNet was fed, its output for all rows, and the latents after the step."""

    index: int
    time: float
    feed: dict[str, np.ndarray]
    output_RCHW: np.ndarray
    latents_BCHW: np.ndarray


def make_scheduler(config: Configuration, name: str) -> Any:
    """Make diffusers' scheduler `name` ("ddim", "euler", "dpmsolver++") with the model's noise schedule."""
    from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

    classes = {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler, "dpmsolver++": DPMSolverMultistepScheduler}
    return classes[name].from_config(dict(config.scheduler))


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """Standard normal noise, float32 [B, C, H, W], each picture from a generator of its own seed."""
    return np.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)).numpy() for seed in seeds])


def latent_shape(config: Configuration, settings: SamplingSettings) -> tuple[int, int, int]:
    """Channels, height and width of the latents of the pictures that `settings` ask for."""
    channels, height, width = config.latent_shape
    height = settings.height // config.factor if settings.height else height
    width = settings.width // config.factor if settings.width else width
    return channels, height, width


def check_size(config: Configuration, settings: SamplingSettings, free: Iterable[str]) -> None:
    """Raise `InputError` for a size that a graph cannot take, naming the nearest ones it can; `free` are its dimensions not pinned."""
    multiple = config.factor * config.latent_multiple
    for name in free:
        pixels = getattr(settings, name)
        if pixels and pixels % multiple:
            below = pixels // multiple * multiple
            raise InputError(
                f"{name} {pixels} is not a multiple of {multiple} pixels, which this UNet halves evenly: take {below or multiple} or "
                f"{(below or multiple) + multiple}, or build with export.{name} = {pixels}, which pins it"
            )


def condition(pipeline: Pipeline, prompts: Sequence[str], settings: SamplingSettings) -> dict[str, np.ndarray]:
    """Return the UNet's inputs that come from the prompts, each [R, …]: with guidance first the rows of no or the negative prompt.

    Without a negative prompt XL's unconditional rows are zeros where its checkpoint says so, as in diffusers.
    """
    batch, guided = len(prompts), settings.guidance != 0
    _, height, width = latent_shape(pipeline.config, settings)
    size = (height * pipeline.config.factor, width * pipeline.config.factor)
    found = pipeline.encode([*([settings.negative_prompt] * batch if guided else []), *prompts], size)
    if guided and not settings.negative_prompt and pipeline.config.index.get("force_zeros_for_empty_prompt"):
        for name in found.keys() & {"encoder_hidden_states", "text_embeds"}:
            found[name] = np.concatenate([np.zeros_like(found[name][:batch]), found[name][batch:]])
    return found


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
    Raises `InputError` for a mask of the wrong width, for a UNet that takes none, for a size that does not fit, and for more steps
    than the noise schedule has.
    """
    check_size(pipeline.config, settings, [dim for dim in pipeline.unet.inputs["sample"][2:] if isinstance(dim, str)])
    scheduler = _scheduled(pipeline.config, settings)
    batch, guided = len(prompts), settings.guidance != 0
    shape = latent_shape(pipeline.config, settings)
    rows = 2 * batch if guided else batch
    told = condition(pipeline, prompts, settings) if conditioning is None else conditioning
    feed = {**told, **_mask_feed(pipeline.unet, mask, batch, rows)}
    latents = torch.from_numpy(initial_noise(seeds, shape)) * scheduler.init_noise_sigma
    for index, t in enumerate(scheduler.timesteps):
        scaled = scheduler.scale_model_input(latents, t).numpy()
        sample = np.concatenate([scaled, scaled]) if guided else scaled
        fed = {**feed, "sample": sample, "timestep": np.full(rows, float(t), np.float32)}
        output = pipeline.unet(fed)["out_sample"]
        prediction = torch.from_numpy(_guided(output, settings.guidance) if guided else output)
        latents = scheduler.step(prediction, t, latents, return_dict=False)[0]
        yield Step(index, float(t), fed, output, latents.numpy())


def generate(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    mask: np.ndarray | None = None,
    advance: Advance = lambda done: None,
    conditioning: Mapping[str, np.ndarray] | None = None,
) -> np.ndarray:
    """Make one picture a prompt and seed: uint8 [B, height, width, 3]. `advance` is told of every step of every picture."""
    latents = initial_noise(seeds, latent_shape(pipeline.config, settings))
    for step in denoise(pipeline, prompts, seeds, settings, mask, conditioning):
        latents = step.latents_BCHW
        advance(len(prompts))
    return pipeline.decode(latents)


def _scheduled(config: Configuration, settings: SamplingSettings) -> Any:
    """The scheduler with its steps. Of as many steps as there are times the first is beyond them all, where they are offset by one."""
    scheduler = make_scheduler(config, settings.scheduler)
    scheduler.set_timesteps(settings.steps)
    times = int(scheduler.config.num_train_timesteps)
    if float(scheduler.timesteps.max()) >= times:
        raise InputError(f"steps {settings.steps} go beyond the {times} times of this model's noise schedule: take {times - 1} or fewer")
    return scheduler


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
