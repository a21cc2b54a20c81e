"""Engine against eager, and the mitigation itself on the engine: numbers with a verdict, nothing printed.

Shapes: P prompts, S seeds, B pictures, N value neurons, H and W pixels.
"""

from __future__ import annotations

__all__ = [
    "GeneralDrift",
    "Measurement",
    "PromptMitigation",
    "StepError",
    "TrajectoryAgreement",
    "VariantMeasurement",
    "compare_trajectories",
    "general_drift",
    "mitigation_of",
    "pictures_of",
    "score_left",
]

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from nemo_edge.checkpoint import Checkpoint
from nemo_edge.localization import Localization
from nemo_edge.memorization import NoiseProbe, ms_ssim
from nemo_edge.recipe import LocalizationSettings, SamplingSettings
from nemo_edge.replication import sscd_similarities, tiled_distances
from nemo_edge.sampling import Pipeline, denoise, generate, latent_shape

_BATCH = 10


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class StepError(_Result):
    """One step: the largest error of the UNet's output and of the latents, each relative to the largest value of eager's."""

    time: float
    output: float
    latents: float


class TrajectoryAgreement(_Result):
    """Two runners from the same noise, each along its own trajectory."""

    steps: tuple[StepError, ...]
    picture_levels: int
    """The largest difference of a pixel, in grey levels of 255."""

    @property
    def largest_error(self) -> float:
        """The largest relative error of any step; NaN if there is one."""
        values = [value for step in self.steps for value in (step.output, step.latents)]
        return float(np.max(values))


class PromptMitigation(_Result):
    """One memorized prompt on one engine; the counts are of pictures, one a seed."""

    prompt: str
    kind: str
    neurons: int
    seeds: int
    score_before: float
    """The highest pairwise score of the unmitigated model (the detection score)."""
    score_after: float
    """The highest score between eager's unmitigated δ and the engine's mitigated one: how much of the memory is left."""
    copies_before: int | None = None
    copies_after: int | None = None
    copies_random: int | None = None
    """With as many random neurons of the same layers silenced instead."""
    others_after: int | None = None
    """Pictures that are a copy of another memorized prompt's picture."""
    distance_before: float | None = None
    distance_after: float | None = None
    distance_random: float | None = None
    """Median tiled ℓ2 distance to the training picture."""
    sscd_before: float | None = None
    sscd_after: float | None = None
    sscd_random: float | None = None
    """Median SSCD similarity to the training picture, where SSCD was given."""


class GeneralDrift(_Result):
    """General prompts with and without the mitigation, the same seed: 1 - SSIM, mean and largest."""

    mean: float
    largest: float
    per_prompt: tuple[float, ...]


class VariantMeasurement(_Result):
    """Everything measured on one variant's engines."""

    variant: str
    trajectory: TrajectoryAgreement
    """Engine against eager with the same neurons silenced."""
    mitigations: tuple[PromptMitigation, ...]
    general: GeneralDrift


class Measurement(_Result):
    """What a build measured on its engines."""

    schema_version: Literal[1] = 1
    threshold: float
    """τ"""
    copy_threshold: float | None
    """The tiled ℓ2 distance below which a picture is a copy; None where no training picture is known."""
    neurons: int
    """Neurons silenced, the union over all memorized prompts."""
    random_neurons: int
    """Neurons the random control silenced: as many of each layer, as far as the layer has others."""
    variants: tuple[VariantMeasurement, ...]
    untouched: TrajectoryAgreement | None = None
    """The masked engine with a mask of ones against eager's unmitigated model."""


def compare_trajectories(
    reference: Pipeline,
    candidate: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    masks: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
) -> TrajectoryAgreement:
    """Denoise on both from the same noise and compare every step and the pictures. `masks` are one for each."""
    errors = []
    pairs = zip(denoise(reference, prompts, seeds, settings, masks[0]), denoise(candidate, prompts, seeds, settings, masks[1]), strict=True)
    for a, b in pairs:
        errors.append(
            StepError(time=a.time, output=_relative(a.output_RCHW, b.output_RCHW), latents=_relative(a.latents_BCHW, b.latents_BCHW))
        )
    levels = np.abs(reference.decode(a.latents_BCHW).astype(int) - candidate.decode(b.latents_BCHW)).max()
    return TrajectoryAgreement(steps=tuple(errors), picture_levels=int(levels))


def score_left(
    checkpoint: Checkpoint,
    eager: Pipeline,
    engine: Pipeline,
    localization: Localization,
    settings: LocalizationSettings,
    mask: np.ndarray | None,
    shape: tuple[int, int, int] | None = None,
) -> float:
    """The highest MS-SSIM, over the kept seeds, between eager's unmitigated δ and the engine's mitigated δ.

    `shape` is that of the engine's latents, where it is pinned to another than the model's own.
    """
    probe = NoiseProbe.of(checkpoint.config, settings, shape)
    conditioning = {name: value.cpu().numpy() for name, value in checkpoint.encode([localization.prompt]).items()}
    seeds = localization.seeds or tuple(range(settings.samples))
    return float(ms_ssim(probe(eager.unet, conditioning, seeds), probe(engine.unet, conditioning, seeds, mask)).max())


def pictures_of(
    pipeline: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    mask: np.ndarray | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Pictures of every prompt from every seed: bytes [P, S, H, W, 3]. `mask` is [N] or one for each prompt, [P, N]."""
    _, height, width = latent_shape(pipeline.config, settings)
    factor = pipeline.config.factor
    jobs = [(p, s) for p in range(len(prompts)) for s in seeds]
    made = [np.empty((0, height * factor, width * factor, 3), np.uint8)]
    for start in range(0, len(jobs), _BATCH):
        part = jobs[start : start + _BATCH]
        masks = mask if mask is None or mask.ndim == 1 else mask[[p for p, _ in part]]
        made.append(generate(pipeline, [prompts[p] for p, _ in part], [s for _, s in part], settings, masks))
        advance(len(part))
    pictures = np.concatenate(made)
    return pictures.reshape(len(prompts), len(seeds), *pictures.shape[1:])


def mitigation_of(
    localization: Localization,
    kind: str,
    score_after: float,
    pictures: dict[str, np.ndarray],
    own: int | None,
    training_BHW3: np.ndarray,
    threshold: float | None,
    sscd: Path | None = None,
) -> PromptMitigation:
    """Judge one prompt's pictures `before`, `after` and `random` ([S, H, W, 3] each) against the training pictures.

    `own` is the place of the prompt's own picture among them (None: it has none); `threshold` decides what is a copy;
    `sscd` is SSCD's TorchScript file.
    """
    counts: dict[str, int | float] = {}
    if own is not None and threshold is not None:
        for name, made in pictures.items():
            distances_SB = tiled_distances(made, training_BHW3)
            counts[f"copies_{name}"] = int((distances_SB[:, own] <= threshold).sum())
            counts[f"distance_{name}"] = float(np.median(distances_SB[:, own]))
            if sscd is not None:
                counts[f"sscd_{name}"] = float(np.median(sscd_similarities(made, training_BHW3[own : own + 1], sscd)))
            if name == "after":
                others = np.delete(distances_SB, own, axis=1)
                counts["others_after"] = int((others <= threshold).any(axis=1).sum())
    return PromptMitigation.model_validate(
        {
            "prompt": localization.prompt,
            "kind": kind,
            "neurons": len(localization.refined),
            "seeds": len(pictures["after"]),
            "score_before": localization.score,
            "score_after": score_after,
            **counts,
        }
    )


def general_drift(before_BHW3: np.ndarray, after_BHW3: np.ndarray) -> GeneralDrift:
    """Compare general pictures without and with the mitigation by SSIM (Wang et al. 2004), in RGB."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = (torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255 for x in (before_BHW3, after_BHW3))
    ssim = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    drift = (1 - ssim.reshape(-1)).tolist()
    return GeneralDrift(mean=float(np.mean(drift)), largest=float(np.max(drift)), per_prompt=tuple(drift))


def _relative(expected: np.ndarray, got: np.ndarray) -> float:
    return float(np.abs(expected - got).max() / np.abs(expected).max())
