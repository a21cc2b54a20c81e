"""Which of many prompts are memorized: the paper's score and the literature's cheaper one, from the same forward, as a stream.

Prompts share forwards, each result is a line in a file as soon as it is there, and what is there already is taken up.
Shapes: S seeds, R rows, C channels, H and W of the latents.
"""

from __future__ import annotations

__all__ = ["Detection", "Detector", "read_detections"]

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from nemo_edge.backends.base import Runner
from nemo_edge.backends.torch import open_runner
from nemo_edge.localization.memorization import NoiseProbe, finite, firm_seed_scores, scaled
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import SCORE, LocalizationSettings, check_threshold
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_json
from nemo_edge.system.journal import append, read_lines
from nemo_edge.system.memory import check_room, room_bytes, rows_at_once

_ENCODED = 64
"""Prompts whose text is encoded together."""


class Detection(BaseModel):
    """What was measured on one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    inputs: str
    """Hash of what the result depends on beside the prompt: weights, τ, settings."""
    prompt: str
    score: float
    """The highest pairwise score of the seeds: the paper's (§3.1)."""
    memorized: bool
    """Whether any seed's highest pairwise score is above τ."""
    seeds: tuple[int, ...]
    """The seeds above τ."""
    norms: tuple[float, ...]
    """‖ε(prompt) − ε("")‖₂ of each seed, one step (Wen et al. 2024, who take the first step; here it is the score's, the second of 50)."""


class Detector:
    """Examines prompts of one checkpoint with one τ; so many rows of the UNet run together as model, device and settings have it."""

    def __init__(self, checkpoint: Checkpoint, threshold: float, settings: LocalizationSettings) -> None:
        self.checkpoint, self.settings = checkpoint, settings
        self.threshold = check_threshold(threshold, "detection", "give the one of `nemo-edge calibrate`")
        told = [settings.guidance] if checkpoint.config.guidance_width else []
        self.inputs = sha256_json([SCORE, checkpoint.files, threshold, settings.seed, settings.samples, settings.steps, *told])
        self.rows = 0
        """Rows of the UNet that were run."""
        self.seconds = self.unet_seconds = 0.0
        """Time spent on prompts, and in the UNet's forwards alone."""
        height, width = checkpoint.config.pixel_size
        self._at_once = settings.rows or rows_at_once(height * width, room_bytes(checkpoint.device))
        check_room(checkpoint.device, height * width, self._at_once)
        self._probe = NoiseProbe.of(checkpoint.config, settings)
        self._unet = _Timed(open_runner(checkpoint.unet_component()))
        self._nothing: Tensor | None = None

    def detect_all(
        self, prompts: Sequence[str], results: Path | None = None, report: Callable[[int], None] = lambda done: None
    ) -> list[Detection]:
        """Examine each prompt, each text once; with `results`, append each as a line of JSON and take up what is there already.

        `report` is told how many prompts are done. Raises `InputError` when what is there was made from other inputs.
        """
        known = {d.prompt: d for d in read_lines(Detection, results)} if results is not None and results.is_file() else {}
        if any(d.inputs != self.inputs for d in known.values()):
            raise InputError(f"{results} was made with another checkpoint, threshold or settings: give another folder")
        report(sum(prompt in known for prompt in prompts))
        waiting, times = list(dict.fromkeys(p for p in prompts if p not in known)), _times(prompts)
        for found in self.stream(waiting):
            if results is not None:
                append(results, found)
            known[found.prompt] = found
            report(times[found.prompt])
        return [known[prompt] for prompt in prompts]

    def stream(self, prompts: Sequence[str]) -> Iterator[Detection]:
        """Yield what is measured on each prompt, in order; nothing of those before is kept."""
        together = max(1, self._at_once // self.settings.samples)
        for first in range(0, len(prompts), _ENCODED):
            texts = prompts[first : first + _ENCODED]
            encoded = {name: value.float().cpu().numpy() for name, value in self.checkpoint.encode(texts).items()}
            for start in range(0, len(texts), together):
                started, before = time.monotonic(), self._unet.seconds
                some = {name: value[start : start + together] for name, value in encoded.items()}
                found = list(self._measure(texts[start : start + together], some))
                self.seconds += time.monotonic() - started
                self.unet_seconds += self._unet.seconds - before
                yield from found

    def _measure(self, prompts: Sequence[str], conditioning: Mapping[str, np.ndarray]) -> Iterator[Detection]:
        x_SCHW, nothing_SCHW = self._probe.latents_SCHW.to(self.checkpoint.device), self._unconditional()
        noises_RCHW = self._noise(conditioning, len(prompts))
        for prompt, noise_SCHW in zip(prompts, noises_RCHW.split(len(x_SCHW)), strict=True):
            scores_S = firm_seed_scores(scaled(noise_SCHW - x_SCHW), self.threshold, partial(self._alone, prompt))
            scores_S = finite(scores_S, "memorization scores", prompt)
            yield Detection(
                inputs=self.inputs,
                prompt=prompt,
                score=float(scores_S.max()),
                memorized=bool((scores_S > self.threshold).any()),
                seeds=tuple(int(s) for s in (scores_S > self.threshold).nonzero().flatten()),
                norms=tuple((noise_SCHW - nothing_SCHW).flatten(1).norm(dim=1).tolist()),
            )

    def _alone(self, prompt: str) -> Tensor:
        """δ of a prompt's latents with no other prompt beside them."""
        encoded = {name: value.float().cpu().numpy() for name, value in self.checkpoint.encode([prompt]).items()}
        return scaled(self._noise(encoded, 1) - self._probe.latents_SCHW.to(self.checkpoint.device))

    def _unconditional(self) -> Tensor:
        """ε of the latents for the empty prompt: the same for all prompts, and computed once."""
        if self._nothing is None:
            encoded = {name: value.float().cpu().numpy() for name, value in self.checkpoint.encode([""], unconditional=True).items()}
            self._nothing = finite(self._noise(encoded, 1), "predicted noise", "")
        return self._nothing

    def _noise(self, conditioning: Mapping[str, np.ndarray], prompts: int) -> Tensor:
        """ε of all latents for each prompt, one prompt after the other."""
        seeds = len(self._probe.latents_SCHW)
        x_RCHW = self._probe.latents_SCHW.repeat(prompts, 1, 1, 1)
        feed = {name: np.repeat(value, seeds, axis=0) for name, value in conditioning.items()}
        self.rows += len(x_RCHW)
        parts = [slice(i, i + self._at_once) for i in range(0, len(x_RCHW), self._at_once)]
        noises = [self._probe.noise(self._unet, {n: v[part] for n, v in feed.items()}, x_RCHW[part]) for part in parts]
        return torch.cat(noises).to(self.checkpoint.device)  # where they are compared, too


def read_detections(path: Path) -> list[Detection]:
    """Read the JSON lines of detections; a last line that was cut off is left out. Raises `InputError` otherwise."""
    return list(read_lines(Detection, path))


def _times(prompts: Sequence[str]) -> dict[str, int]:
    times: dict[str, int] = {}
    for prompt in prompts:
        times[prompt] = times.get(prompt, 0) + 1
    return times


class _Timed:
    """A runner that knows how long it ran."""

    def __init__(self, runner: Runner) -> None:
        self._runner, self.inputs, self.seconds = runner, runner.inputs, 0.0

    def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        started = time.monotonic()
        found = self._runner(feed)
        self.seconds += time.monotonic() - started
        return found

    def __enter__(self) -> _Timed:
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.__exit__(None, None, None)
