"""What the mitigation does, measured on pictures and scores: per memorized prompt, on general prompts, and as a curve.

Shapes: P prompts, S seeds, B pictures, N value neurons, H and W pixels.
"""

from __future__ import annotations

__all__ = [
    "CurvePoint",
    "Drawn",
    "FoundNeuron",
    "GeneralDrift",
    "Measurement",
    "Nearest",
    "PromptMitigation",
    "Shown",
    "VariantMeasurement",
    "draw_prompts",
    "general_drift",
    "noise_difference",
    "score_left",
    "shown",
    "z_scores",
]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from nemo_edge.localization.calibration import Statistics, activations
from nemo_edge.localization.localizer import Localization
from nemo_edge.localization.memorization import NoiseProbe
from nemo_edge.localization.multiscale import ms_ssim
from nemo_edge.measure.fidelity import Agreement
from nemo_edge.measure.localcopies import local_distances
from nemo_edge.measure.replication import Training, nearest_readings, sscd_similarities
from nemo_edge.measure.similarity import diversity, ssim
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import LocalizationSettings, SamplingSettings
from nemo_edge.sampling.loop import Pipeline, denoise, latent_shape
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.memory import pictures_at_once
from nemo_edge.system.reading import read_bytes


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Nearest(NamedTuple):
    """The training picture that one picture is nearest to, of all that are known."""

    training: int
    """Its place among the known training pictures, which are in the order of their prompts."""
    distance: float
    """The tiled ℓ2 distance, in the reading that is nearest."""


class Shown(_Result):
    """What the pictures of one prompt show, over all its seeds."""

    copies: int | None = None
    """How many are a copy of the prompt's own training picture; None where none is known."""
    others: int | None = None
    """How many are a copy of another prompt's training picture and not of its own; None where no training picture is known at all."""
    distance: float | None = None
    """Median tiled ℓ2 distance to the training picture, each picture to the reading of it that is nearest."""
    nearest: tuple[Nearest, ...] = ()
    """Of each seed's picture; empty where no training picture is known, and in a measurement from before they were kept."""
    reading: str = ""
    """The reading of the training picture that the nearest of the pictures is nearest to; empty where no distance was taken."""
    local_copies: int | None = None
    """How many hold a copy of a part of the prompt's own training picture, by the windowed distance; None where none is known."""
    local_distance: float | None = None
    """Median windowed distance to the training picture."""
    sscd: float | None = None
    """Median SSCD similarity to the training picture, where SSCD was given."""
    diversity: float
    """Mean 1 - SSIM over all pairs of seeds; NaN for one seed."""

    @property
    def compared(self) -> bool:
        """Whether the pictures were compared with a training picture, be it another prompt's."""
        return self.copies is not None or self.others is not None

    @property
    def returned(self) -> int:
        """How many are a copy of a training picture that is known."""
        return (self.copies or 0) + (self.others or 0)


class PromptMitigation(_Result):
    """One examined prompt on one engine."""

    prompt: str
    kind: str
    """VM (verbatim) or TM (a template) for a memorized prompt, where the list says so."""
    neurons: int
    """Neurons found for this prompt; 0 when it is not memorized."""
    seeds: int
    score_before: float
    """The highest pairwise score of the unmitigated model (the detection score)."""
    score_after: float
    """The highest score between eager's unmitigated δ and the engine's mitigated one: how much of the memory is left."""
    score_after_eager: float
    """The same on eager PyTorch."""
    before: Shown
    after: Shown
    random: Shown
    """With as many random neurons of the same layers silenced instead."""
    distance_error: float | None = None
    """Largest difference of the tiled ℓ2 distance between the engine's pictures and eager's, the same neurons silenced."""

    @property
    def agreement_error(self) -> float:
        """The larger of the differences between engine and eager in score and in copy distance; NaN if there is one."""
        return float(np.max([abs(self.score_after - self.score_after_eager), self.distance_error or 0.0]))

    @property
    def new(self) -> bool:
        """Whether the mitigated pictures hold copies where the unmitigated ones held none: of its own picture, or of others'."""
        before, after = self.before, self.after
        return bool((after.copies and not before.copies) or (after.others and not before.others))


class GeneralDrift(_Result):
    """General prompts with and without the mitigation, the same seeds: means over the pictures."""

    mean: float
    """1 - SSIM."""
    largest: float
    per_prompt: tuple[float, ...]
    """1 - SSIM of each prompt, the mean over its seeds."""
    latents: float
    """Relative ℓ2 distance of the final latents."""
    diversity_before: float
    diversity_after: float
    """Mean 1 - SSIM over the pairs of seeds of each prompt."""


class CurvePoint(_Result):
    """General prompts against the number of neurons silenced."""

    neurons: int
    chosen: Literal["found", "random"]
    """Neurons that localization found, or as many random ones beside them."""
    drift: float
    """1 - SSIM to the unmitigated model's pictures."""
    latents: float
    diversity: float
    """Over the pairs of seeds of each prompt."""


class FoundNeuron(_Result):
    """One neuron of a prompt's set, and how far its activation on that prompt is from general prompts'."""

    layer: int
    neuron: int
    z: float
    """Standard deviations from the mean over general prompts."""


class VariantMeasurement(_Result):
    """Everything measured on one variant's engines."""

    variant: str
    trajectory: Agreement
    """Engine against eager with the same neurons silenced."""
    mitigations: tuple[PromptMitigation, ...]
    general: GeneralDrift


class Measurement(_Result):
    """What a build measured on its engines."""

    schema_version: Literal[4] = 4
    threshold: float
    """τ"""
    copy_threshold: float | None
    """The tiled ℓ2 distance below which a picture is a copy; None where no training picture is known."""
    local_threshold: float | None = None
    """The windowed distance below which a picture holds a copy of a part; None where no training picture is known."""
    local_pairs: int = 0
    """Unrelated pairs that it comes from."""
    general_scores: tuple[float, ...]
    """The highest pairwise score of each general prompt that τ comes from."""
    layers: tuple[str, ...]
    """Names of the value layers."""
    neurons: int
    """Neurons silenced, the union over all memorized prompts."""
    random_neurons: int
    """Neurons the random control silenced: as many of each layer, as far as the layer has others."""
    found: tuple[tuple[FoundNeuron, ...], ...]
    """The neurons of each examined prompt."""
    general_prompts: tuple[str, ...]
    variants: tuple[VariantMeasurement, ...]
    untouched: Agreement | None = None
    """The masked engine with a mask of ones against eager's unmitigated model."""
    mask_of_ones: float | None = None
    """Largest relative error of the masked UNet with a mask of ones against the unmitigated engine; None without either."""
    curve: tuple[CurvePoint, ...] = ()
    """Drawn by the masked engine, or by eager where the bundle has none."""

    @classmethod
    def read(cls, folder: Path) -> Measurement:
        """Read `measurement.json` of a bundle or a stage. Raises `BundleError` for one that is missing or of another schema."""
        try:
            return cls.model_validate_json(read_bytes(folder / "measurement.json"))
        except (InputError, ValidationError) as error:
            raise BundleError(f"{folder} holds no measurement.json that this nemo-edge reads: build the bundle again") from error


@dataclass(frozen=True)
class Drawn:
    """Pictures of some prompts and their final latents: bytes [P, S, H, W, 3] and float32 [P, S, C, h, w]."""

    pictures: np.ndarray
    latents: np.ndarray


def noise_difference(
    checkpoint: Checkpoint,
    pipeline: Pipeline,
    localization: Localization,
    settings: LocalizationSettings,
    mask: np.ndarray | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Tensor:
    """Return δ of a prompt on a pipeline's UNet for the seeds that localization kept, [S, C, H, W].

    `shape` is that of the latents, where an engine has it pinned to another than the model's own.
    """
    probe = NoiseProbe.of(checkpoint.config, settings, shape)
    conditioning = {name: value.cpu().numpy() for name, value in checkpoint.encode([localization.prompt]).items()}
    _, height, width = probe.latents_SCHW.shape[1:]
    at_once = 2 * pictures_at_once(height * width * checkpoint.config.factor**2)
    return probe(pipeline.unet, conditioning, localization.seeds or tuple(range(settings.samples)), mask, at_once)


def score_left(unmitigated_SCHW: Tensor, mitigated_SCHW: Tensor) -> float:
    """Return the highest MS-SSIM, over the seeds, between δ without and with the mitigation: how much of the memory is left."""
    return float(ms_ssim(unmitigated_SCHW, mitigated_SCHW).max())


def draw_prompts(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    mask: np.ndarray | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Drawn:
    """Draw every prompt from every seed. `mask` is [N]; `advance` is told the pictures done."""
    shape = latent_shape(pipeline.config, settings)
    at_once = pictures_at_once(shape[1] * shape[2] * pipeline.config.factor**2)
    jobs = [(prompt, seed) for prompt in prompts for seed in seeds]
    latents, pictures = [], []
    for start in range(0, len(jobs), at_once):
        part = jobs[start : start + at_once]
        *_, last = denoise(pipeline, [p for p, _ in part], [s for _, s in part], settings, mask)
        latents.append(last.latents_BCHW)
        pictures.append(pipeline.decode(last.latents_BCHW))
        advance(len(part))
    made = np.concatenate(pictures)
    lead = (len(prompts), len(seeds))
    return Drawn(made.reshape(*lead, *made.shape[1:]), np.concatenate(latents).reshape(*lead, *shape))


def shown(
    pictures_SHW3: np.ndarray,
    own: int | None,
    training: Training,
    threshold: float | None,
    sscd: Path | None = None,
    local_threshold: float | None = None,
) -> Shown:
    """Judge one prompt's pictures against all training pictures that are known.

    `own` is the place of the prompt's own picture among them (None: it is not known); `threshold` decides what is a copy (None: no
    training picture is known); `sscd` is SSCD's TorchScript file; with `local_threshold` copies of parts of the own picture count too.
    """
    spread = diversity(pictures_SHW3)
    if threshold is None:
        return Shown(diversity=spread)
    distances_SK, readings_SK = nearest_readings(pictures_SHW3, training)
    near_SK = distances_SK <= threshold
    closest = tuple(Nearest(int(row.argmin()), float(row.min())) for row in distances_SK)
    if own is None:
        return Shown(others=int(near_SK.any(axis=1).sum()), nearest=closest, diversity=spread)
    local_S = None if local_threshold is None else local_distances(pictures_SHW3, training.only(own))[:, 0]
    reading = readings_SK[distances_SK[:, own].argmin(), own]
    return Shown(
        copies=int(near_SK[:, own].sum()),
        others=int((near_SK.any(axis=1) & ~near_SK[:, own]).sum()),
        distance=float(np.median(distances_SK[:, own])),
        nearest=closest,
        reading=training.names[reading],
        local_copies=None if local_S is None else int((local_S <= local_threshold).sum()),
        local_distance=None if local_S is None else float(np.median(local_S)),
        sscd=_sscd(pictures_SHW3, training.only(own), sscd) if sscd else None,
        diversity=spread,
    )


def _sscd(pictures_SHW3: np.ndarray, own: Training, model: Path) -> float:
    """The median similarity to the training picture, each picture's to the reading that is most similar."""
    return float(np.median(sscd_similarities(pictures_SHW3, own.pictures_RHW3, model).max(axis=1)))


def general_drift(before: Drawn, after: Drawn) -> GeneralDrift:
    """Compare general prompts without and with the mitigation, picture by picture of the same seed."""
    prompts, seeds = before.pictures.shape[:2]
    a, b = (x.pictures.reshape(-1, *x.pictures.shape[2:]) for x in (before, after))
    drift = (1 - ssim(a, b)).reshape(prompts, seeds).mean(axis=1)
    gaps = np.linalg.norm((before.latents - after.latents).reshape(prompts * seeds, -1), axis=1)
    sizes = np.linalg.norm(before.latents.reshape(prompts * seeds, -1), axis=1)
    return GeneralDrift(
        mean=float(drift.mean()),
        largest=float(drift.max()),
        per_prompt=tuple(drift.tolist()),
        latents=float((gaps / sizes).mean()),
        diversity_before=float(np.mean([diversity(made) for made in before.pictures])),
        diversity_after=float(np.mean([diversity(made) for made in after.pictures])),
    )


def z_scores(
    checkpoint: Checkpoint, statistics: Statistics, localization: Localization, settings: LocalizationSettings
) -> tuple[FoundNeuron, ...]:
    """Return the neurons of a prompt's set with the z-score of their activation on it (paper §3.2)."""
    text = checkpoint.encode([localization.prompt])["encoder_hidden_states"]
    measured = activations(checkpoint.unet, text, settings.layers)
    found = []
    for layer, (a_1W, mean_W, std_W) in enumerate(zip(measured, statistics.mean, statistics.std, strict=True)):
        z_W = (a_1W[0].float().cpu() - mean_W) / std_W
        found += [FoundNeuron(layer=layer, neuron=n, z=float(z_W[n])) for n in localization.refined.indices[layer]]
    return tuple(found)
