"""An attack walked through at a model's full size with random weights: that it runs there and what it takes, and nothing of what it finds.

Knows architectures, settings and a clock; the pictures and prompts are its own.
"""

from __future__ import annotations

__all__ = ["SETTINGS", "Smoke", "smoke"]

import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.manifest import staging
from nemo_edge.export.parts import layers_of
from nemo_edge.measure.attacks.campaign import Campaign, attack_subject
from nemo_edge.measure.attacks.subject import Place, Subject, open_subject
from nemo_edge.model.marker import is_random
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.prompts import read_prompts
from nemo_edge.recipe.settings import AttackSettings, CheckpointSettings, SamplingSettings
from nemo_edge.release.random_weights import write_random
from nemo_edge.system.environment import Machine, machine
from nemo_edge.system.files import check_file, write_atomically
from nemo_edge.system.memory import GB
from nemo_edge.system.outputs import lock
from nemo_edge.system.progress import Advance, Progress

SETTINGS: dict[str, Any] = {
    "text": ("random tokens", "greedy search"),
    "starts": ("prompt",),
    "steps": 2,
    "batches": 5,
    "candidates": 2,
    "words": 1,
    "variants": 1,
    "seeds": 1,
}
"""Both kinds of attack, as short as they can be: options ask for more."""
SAMPLING = SamplingSettings(steps=2, height=128, width=128)
_PROMPTS = ("a red pig", "an owl by the sea", "a fox with a hat")
_SILENCED = 4
"""Neurons of each layer."""


class Smoke(BaseModel):
    """What an attack takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    architecture: str
    parameters: int
    """Of the UNet."""
    height: int
    width: int
    """Of the pictures, in pixels."""
    attacked: dict[str, int]
    """Pictures of each group, counted once for each way."""
    step_s: float | None
    """Median seconds of a step of an embedding: a batch of 8 with its gradient. None where there were none."""
    batch_s: float | None
    """Median seconds of a batch of 8 of a search for text, without a gradient."""
    peak_memory_gb: float
    """The most that the process held in memory, and on a CUDA device the tensors there too."""
    machine: Machine


def smoke(
    source: CheckpointSettings,
    settings: AttackSettings,
    output: Path,
    sampling: SamplingSettings = SAMPLING,
    progress: Progress | None = None,
) -> Smoke:
    """Attack three prompts of a model with random weights in every way of `settings`, and write to `output` what it took.

    The path of `source` is one of `ARCHITECTURES`, a folder of configurations, whose weights if it has any are not read, or a folder of
    random weights; others are made beside `output` and removed. Raises `InputError` for any other.
    """
    progress = progress or Progress()
    check_file(output)
    with lock(output), staging(output) as folder:
        weights = Path(source.path)
        if is_random(weights) is None:
            write_random(source.path, weights := folder / "weights", progress=progress)
        known = settings.model_copy(update={"controls": folder / "controls"})
        prompts = _written(folder, sampling)
        place = Place(source.model_copy(update={"path": str(weights)}), _neurons(weights, folder), sampling)
        with open_subject(place, None) as subject:
            found, times = _walked(subject, prompts, known, folder / "attack.json", progress)
            result = Smoke(
                architecture=str(is_random(weights)),
                parameters=sum(p.numel() for p in subject.checkpoint.unet.parameters()),
                height=subject.size[0],
                width=subject.size[1],
                attacked=dict(Counter(each.group for each in found.attacked)),
                step_s=times[0],
                batch_s=times[1],
                peak_memory_gb=_peak_gb(subject),
                machine=machine(),
            )
    write_atomically(output, result.model_dump_json(indent=1) + "\n")
    return result


def _walked(
    subject: Subject, prompts: Path, settings: AttackSettings, output: Path, progress: Progress
) -> tuple[Campaign, tuple[float | None, float | None]]:
    """Embeddings first, then searches, then the other texts, one after the other, so that the first two can be timed."""
    times, listed = [], read_prompts(prompts)
    stages = [settings.model_copy(update={"text": ()}), settings.model_copy(update={"text": settings.searches}), settings]
    for chosen in stages:
        timed = _Timed(progress)
        if chosen.starts or chosen.text:
            found = attack_subject(subject, listed, prompts, chosen, output, timed)
        times.append(statistics.median(timed.intervals_s) if timed.intervals_s else None)
    return found, (times[0], times[1])


def _written(folder: Path, sampling: SamplingSettings) -> Path:
    """A list of prompts with dark pictures of noise, and a light one for a control; return the list."""
    (folder / "controls").mkdir()
    rng, size = np.random.default_rng(0), (sampling.width or 512, sampling.height or 512)
    for name, darkest in (*((f"{place}.png", 0) for place in range(len(_PROMPTS))), ("controls/light.png", 128)):
        small = Image.fromarray(rng.integers(darkest, darkest + 128, (8, 8, 3), np.uint8))
        small.resize(size, Image.Resampling.NEAREST).save(folder / name)
    rows = [f"{prompt};{place}.png" for place, prompt in enumerate(_PROMPTS)]
    (folder / "list.csv").write_text("\n".join(["Caption;image", *rows, ""]))
    return folder / "list.csv"


def _neurons(weights: Path, folder: Path) -> Path:
    layers = layers_of(CheckpointSettings(path=str(weights)), "paper", Progress())
    NeuronSet.from_lists(layers, [range(_SILENCED) for _ in layers]).save(folder / "neurons.json")
    return folder / "neurons.json"


def _peak_gb(subject: Subject) -> float:
    import resource  # not on Windows

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if subject.checkpoint.device.type == "cuda":
        import torch

        held += torch.cuda.max_memory_allocated(subject.checkpoint.device)
    return round(held / GB, 2)


class _Timed(Progress):
    """Passes progress on, and keeps the seconds between two units of the same job."""

    def __init__(self, inner: Progress) -> None:
        self.inner, self.intervals_s = inner, list[float]()

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        with self.inner.task(description, total) as advance:
            last: float | None = None

            def told(done: int) -> None:
                nonlocal last
                now = time.perf_counter()
                if done == 1 and last is not None:
                    self.intervals_s.append(now - last)
                last = now if done == 1 else None  # a job ends with what was left of it, mostly nothing
                advance(done)

            yield told

    def note(self, message: str) -> None:
        self.inner.note(message)
