"""Runner against runner: how far one pipeline is from another along the trajectory and in its pictures. Nothing is printed.

Shapes: B pictures, R rows of the UNet, C channels, H and W of the latents.
"""

from __future__ import annotations

__all__ = ["Agreement", "StepError", "Trajectory", "compare_trajectories", "merged", "trace_trajectory"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_edge.measure.similarity import lpips, psnr, relative_error, ssim
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, Step, denoise
from nemo_edge.system.errors import InputError


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class StepError(_Result):
    """One step: the largest error, each relative to the largest value of the reference's tensor."""

    time: float
    forced: float
    """Of the UNet's output on the reference's own latents: what this step alone adds."""
    output: float
    """Of the UNet's output, each runner along its own trajectory."""
    latents: float
    """Of the latents after the step, each along its own trajectory."""

    @property
    def largest(self) -> float:
        """The largest of the three; NaN if there is one."""
        return float(np.max([self.forced, self.output, self.latents]))


class Agreement(_Result):
    """Two runners from the same noise, and the pictures they end with."""

    schema_version: Literal[1] = 1
    steps: tuple[StepError, ...]
    picture_levels: int
    """The largest difference of a pixel, in grey levels of 255."""
    ssim: float
    """The lowest of the pictures."""
    psnr: float
    """The lowest of the pictures, in dB; infinite for the same pictures."""
    lpips: float | None = None
    """The highest of the pictures; None where the package `lpips` is not installed."""

    @property
    def largest_error(self) -> float:
        """The largest relative error of any step; NaN if there is one."""
        return float(np.max([step.largest for step in self.steps]))

    @property
    def forced_error(self) -> float:
        """The largest relative error of any step, fed what the reference is fed there; NaN if there is one."""
        return float(np.max([step.forced for step in self.steps]))

    def drift_start(self, tolerance: float) -> int | None:
        """Return the first step whose latents are off by more than `tolerance` (NaN is), or None."""
        return next((i for i, step in enumerate(self.steps) if not step.latents <= tolerance), None)


def merged(found: Sequence[Agreement]) -> Agreement:
    """Return the agreement of several groups of prompts: at each step, and of the pictures, the worst of all."""
    steps = [
        StepError(
            time=at[0].time,
            forced=float(np.max([s.forced for s in at])),
            output=float(np.max([s.output for s in at])),
            latents=float(np.max([s.latents for s in at])),
        )
        for at in zip(*(a.steps for a in found), strict=True)
    ]
    distances = [a.lpips for a in found if a.lpips is not None]
    return Agreement(
        steps=tuple(steps),
        picture_levels=max(a.picture_levels for a in found),
        ssim=float(np.min([a.ssim for a in found])),
        psnr=float(np.min([a.psnr for a in found])),
        lpips=float(np.max(distances)) if distances else None,
    )


@dataclass(frozen=True)
class Trajectory:
    """A runner's whole way from noise to pictures, kept to compare others with."""

    steps: tuple[Step, ...]
    pictures_BHW3: np.ndarray

    def check_finite(self, source: str) -> None:
        """Raise `InputError` where eager's own latents of `source`, a checkpoint, are not finite: no engine is to blame for that."""
        bad = next((step for step in self.steps if not np.isfinite(step.latents_BCHW).all()), None)
        if bad is not None:
            raise InputError(
                f"the checkpoint itself gives latents that are not finite numbers, at step {bad.index + 1} (time {bad.time:g}) in eager "
                f"PyTorch, whatever the engines do: check that diffusers draws with {source}, or take another scheduler"
            )


def trace_trajectory(
    pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings, mask: np.ndarray | None = None
) -> Trajectory:
    """Denoise and keep every step and the pictures, one a prompt and seed."""
    steps = tuple(denoise(pipeline, prompts, seeds, settings, mask))
    return Trajectory(steps, pipeline.decode(steps[-1].latents_BCHW))


def compare_trajectories(
    reference: Trajectory,
    candidate: Pipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    mask: np.ndarray | None = None,
) -> Agreement:
    """Denoise on the candidate from the same noise, and run each of its steps on the reference's latents too."""
    own = trace_trajectory(candidate, prompts, seeds, settings, mask)
    errors = []
    for a, b in zip(reference.steps, own.steps, strict=True):
        forced = candidate.unet({**b.feed, "sample": a.feed["sample"]})["out_sample"]
        errors.append(
            StepError(
                time=a.time,
                forced=relative_error(a.output_RCHW, forced),
                output=relative_error(a.output_RCHW, b.output_RCHW),
                latents=relative_error(a.latents_BCHW, b.latents_BCHW),
            )
        )
    a_BHW3, b_BHW3 = reference.pictures_BHW3, own.pictures_BHW3
    distances = lpips(a_BHW3, b_BHW3)
    return Agreement(
        steps=tuple(errors),
        picture_levels=int(np.abs(a_BHW3.astype(int) - b_BHW3).max()),
        ssim=float(ssim(a_BHW3, b_BHW3).min()),
        psnr=float(psnr(a_BHW3, b_BHW3).min()),
        lpips=None if distances is None else float(distances.max()),
    )
