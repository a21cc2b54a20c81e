"""Attacks that judge hardened weights and trained none of them: a checkpoint as it is, in eager PyTorch, towards one picture at a time.

Others' chances, starts, rates, optimisers and step counts than hardening has; embeddings that were found on another checkpoint; and a short
fine-tuning on pictures of general prompts. Knows no files of results.
"""

from __future__ import annotations

__all__ = ["JUDGES", "SEEDS", "Judge", "Stand", "attacked", "by_prompt", "fine_tune_", "others", "replayed", "steps_to"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from nemo_edge.localization.paraphrases import paraphrases
from nemo_edge.measure.attacks.controls import Known
from nemo_edge.measure.attacks.embedding import EmbeddingSearch, draw_found, from_noise
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.measure.mitigation import draw_prompts
from nemo_edge.measure.similarity import diversity, ssim
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.pipelines import eager_pipeline

MARKS = (10, 25, 50, 100)
"""Steps after which pictures are drawn with what an attack has found."""
SEEDS = range(4)
"""Of these pictures."""
_WINDOW = 10
"""Steps whose mean loss is told."""
_TUNING = {"steps": 200, "rows": 8, "rate": 1e-4}

Told = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Judge:
    """An attack: from where, by which chance, optimiser and rate, how far."""

    start: str
    """`prompt`, `paraphrase`, `noise` or `unrelated`."""
    seed: int = 1001
    rate: float = 0.1
    optimiser: str = "Adam"
    """Of `torch.optim`."""
    steps: int = MARKS[-1]


JUDGES = (
    Judge("prompt"),
    Judge("paraphrase", 1002),
    Judge("noise", 1003),
    Judge("unrelated", 1004),
    Judge("prompt", 1005, 0.05, "RMSprop"),
    Judge("unrelated", 1006, 0.3, steps=50),
)


@dataclass(frozen=True)
class Stand:
    """What judges need beside a checkpoint: how pictures are drawn, what a copy is, and a prompt that has nothing to do with a memory."""

    sampling: SamplingSettings
    threshold: float
    unrelated: str

    def copies(self, known: Known, pictures_SHW3: np.ndarray) -> dict[str, Any]:
        """How many of some pictures are copies, and how far each is."""
        distances = known.distances(pictures_SHW3)
        return {"copies": int((distances <= known.limit(self.threshold)).sum()), "distances": np.round(distances, 3).tolist()}


def attacked(checkpoint: Checkpoint, known: Known, judge: Judge, stand: Stand) -> tuple[dict[str, Any], Told]:
    """One attack: what it got to at each mark, its loss at each step, and what it told the UNet at its end."""
    pipeline, losses, marks = eager_pipeline(checkpoint), [], []
    (latents_CHW,) = checkpoint.encode_pictures(known.training.pictures_RHW3[:1])
    generator = torch.Generator().manual_seed(judge.seed)
    optimiser = getattr(torch.optim, judge.optimiser)
    told = _start(checkpoint, known, judge, stand)
    search = EmbeddingSearch(Objective.of(checkpoint), latents_CHW, told, generator, rate=judge.rate, optimiser=optimiser)
    for step in range(1, judge.steps + 1):
        losses.append(search.step())
        if step in MARKS:
            told = {name: value.detach().cpu().numpy().copy() for name, value in search.told.items()}
            marks.append({"steps": step, **stand.copies(known, draw_found(pipeline, told, SEEDS, stand.sampling))})
    found = {**vars(judge), "prompt": known.prompt, "picture": known.path.name if known.path else "", "marks": marks}
    return {**found, "losses": np.round(losses, 4).tolist()}, told


def _start(checkpoint: Checkpoint, known: Known, judge: Judge, stand: Stand) -> dict[str, np.ndarray]:
    own = known.prompt or stand.unrelated
    texts = {"prompt": own, "paraphrase": paraphrases(own, 1, judge.seed)[0].text}
    told = eager_pipeline(checkpoint).encode([texts.get(judge.start, stand.unrelated)], known.size)
    return from_noise(told, judge.seed) if judge.start == "noise" else dict(told)


def replayed(checkpoint: Checkpoint, known: Known, told: Told, stand: Stand) -> dict[str, Any]:
    """What an embedding that was found on another checkpoint brings back of this one."""
    return {"prompt": known.prompt, **stand.copies(known, draw_found(eager_pipeline(checkpoint), told, SEEDS, stand.sampling))}


def by_prompt(checkpoint: Checkpoint, memories: Sequence[Known], stand: Stand) -> dict[str, Any]:
    """What the memorized prompts themselves bring back."""
    drawn = draw_prompts(eager_pipeline(checkpoint), [known.prompt for known in memories], SEEDS, stand.sampling).pictures
    copies = [stand.copies(known, own)["copies"] for known, own in zip(memories, drawn, strict=True)]
    return {"copies": copies, "of": len(SEEDS)}


def others(checkpoint: Checkpoint, prompts: Sequence[str], theirs_PSHW3: np.ndarray, stand: Stand) -> dict[str, float]:
    """Pictures of general prompts, beside a reference's of the same seeds, from 0 on."""
    seeds = range(theirs_PSHW3.shape[1])
    own = draw_prompts(eager_pipeline(checkpoint), prompts, seeds, stand.sampling).pictures
    drift = 1 - ssim(own.reshape(-1, *own.shape[2:]), theirs_PSHW3.reshape(-1, *own.shape[2:]))
    return {"drift": round(float(drift.mean()), 4), "diversity": round(float(np.mean([diversity(each) for each in own])), 4)}


def fine_tune_(checkpoint: Checkpoint, prompts: Sequence[str], pictures_PHW3: np.ndarray) -> dict[str, Any]:
    """Fine-tune the UNet as anybody might, on a picture of each of some general prompts: the loss that models are trained by."""
    steps, rows, rate = (_TUNING[name] for name in ("steps", "rows", "rate"))
    latents_PCHW, objective = checkpoint.encode_pictures(pictures_PHW3), Objective.of(checkpoint)
    told = [checkpoint.encode([prompt]) for prompt in prompts]
    generator = torch.Generator().manual_seed(2001)
    weights = list(checkpoint.unet.parameters())
    for value in weights:
        value.requires_grad_(True)
    optimiser, losses = torch.optim.AdamW(weights, lr=rate), []
    for _ in range(int(steps)):
        chosen = torch.randint(len(prompts), (int(rows),), generator=generator).tolist()
        optimiser.zero_grad()
        losses.append(0.0)
        for number in chosen:
            loss = objective.loss(told[number], objective.noised(latents_PCHW[number], 1, generator)) / rows
            loss.backward()
            losses[-1] += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
    for value in weights:
        value.requires_grad_(False)
    return {**_TUNING, "prompts": len(prompts), "losses": [round(float(np.mean(part)), 4) for part in (losses[:20], losses[-20:])]}


def steps_to(losses: Sequence[float], level: float) -> int | None:
    """The first step of an attack whose loss, the mean of ten steps, is at or below a level."""
    means = np.convolve(losses, np.ones(_WINDOW) / _WINDOW, mode="valid")
    below = np.flatnonzero(means <= level)
    return int(below[0]) + _WINDOW if len(below) else None
