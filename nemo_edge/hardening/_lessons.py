"""What the weights are taught: pictures that the mitigated model draws, and what it says of them under noise.

No training data is needed beside the known pictures. Knows latents and what a UNet is told, nothing of how weights change.
Shapes: C channels, H and W of the latents, S surrogates, P prompts, R rows.
"""

from __future__ import annotations

__all__ = ["Lesson", "Memory", "Others", "draw_memory", "draw_others", "forget", "keep"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from nemo_edge.measure.attacks.objective import Noised, Objective
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import Pipeline, condition, denoise, guided, latent_shape
from nemo_edge.system.memory import pictures_at_once

Told = dict[str, Tensor]


@dataclass(frozen=True)
class Memory:
    """One memory: its picture, what the UNet is told for its prompt (a row of each input), and what it shall draw instead."""

    latents_CHW: Tensor
    told: Told
    surrogates_SCHW: Tensor


@dataclass(frozen=True)
class Others:
    """What must stay: pictures of general prompts, of no prompt and of the memorized ones, with what the UNet is told for each."""

    latents_PCHW: Tensor
    told: Told


@dataclass(frozen=True)
class Lesson:
    """Rows for the weights to learn: what they see, what they are told, and what the mitigated model is told for the same answer."""

    noised: Noised
    told: Told
    teacher: Told

    def split(self, rows: int) -> list[Lesson]:
        """The rows in parts of so many."""
        parts = [{name: value.split(rows) for name, value in told.items()} for told in (self.told, self.teacher)]
        return [
            Lesson(noised, *({name: value[number] for name, value in part.items()} for part in parts))
            for number, noised in enumerate(self.noised.split(rows))
        ]


def draw_memory(pipeline: Pipeline, prompt: str, latents_CHW: Tensor, surrogates: int, settings: SamplingSettings) -> Memory:
    """Draw the surrogates of a memory with the mitigated model, each from a seed of its own."""
    drawn_SCHW = _drawn(pipeline, [prompt] * surrogates, range(surrogates), settings, latents_CHW)
    return Memory(latents_CHW, _told(pipeline, [prompt], settings, latents_CHW), drawn_SCHW)


def draw_others(pipeline: Pipeline, prompts: Sequence[str], settings: SamplingSettings, like: Tensor) -> Others:
    """Draw a picture of each prompt, and one of none for what guidance leads away from; `like` has the type and the device."""
    told, none = _told(pipeline, prompts, settings, like), _told(pipeline, [""], settings, like)
    if guided(pipeline.config, settings):
        rows = condition(pipeline, [""], settings)
        none = {name: torch.from_numpy(np.ascontiguousarray(value[:1])).to(like) for name, value in rows.items()}
    drawn_PCHW = _drawn(pipeline, [*prompts, ""], range(len(prompts) + 1), settings, like)
    return Others(drawn_PCHW, {name: torch.cat([value, none[name]]) for name, value in told.items()})


def forget(objective: Objective, memory: Memory, found: Mapping[str, Tensor], rows: int, generator: torch.Generator) -> Lesson:
    """Told what an attack has found, say what the mitigated model says to the prompt: half under the memory, half under surrogates."""
    chosen = torch.randint(len(memory.surrogates_SCHW), (rows - rows // 2,), generator=generator).tolist()
    under = [memory.latents_CHW] * (rows // 2) + [memory.surrogates_SCHW[number] for number in chosen]
    told, teacher = ({name: value.detach().expand(rows, *value.shape[1:]) for name, value in each.items()} for each in (found, memory.told))
    return Lesson(_noised(objective, under, generator), told, teacher)


def keep(objective: Objective, others: Others, rows: int, generator: torch.Generator) -> Lesson:
    """Say what the mitigated model says, of pictures of others."""
    chosen = torch.randint(len(others.latents_PCHW), (rows,), generator=generator)
    told = {name: value[chosen.to(value.device)] for name, value in others.told.items()}
    return Lesson(_noised(objective, [others.latents_PCHW[number] for number in chosen.tolist()], generator), told, told)


def _noised(objective: Objective, pictures: Sequence[Tensor], generator: torch.Generator) -> Noised:
    """Each picture under noise and at a time of its own."""
    rows = [objective.noised(latents_CHW, 1, generator) for latents_CHW in pictures]
    return Noised(*(torch.cat([getattr(row, field.name) for row in rows]) for field in fields(Noised)))


def _told(pipeline: Pipeline, prompts: Sequence[str], settings: SamplingSettings, like: Tensor) -> Told:
    """What the UNet is told for prompts, without the rows that guidance adds."""
    rows = condition(pipeline, prompts, settings)
    return {name: torch.from_numpy(np.ascontiguousarray(value[-len(prompts) :])).to(like) for name, value in rows.items()}


def _drawn(pipeline: Pipeline, prompts: Sequence[str], seeds: Sequence[int], settings: SamplingSettings, like: Tensor) -> Tensor:
    _, height, width = latent_shape(pipeline.config, settings)
    at_once = pictures_at_once(height * width * pipeline.config.factor**2)
    parts = []
    for first in range(0, len(prompts), at_once):
        *_, last = denoise(pipeline, prompts[first : first + at_once], seeds[first : first + at_once], settings)
        parts.append(torch.from_numpy(last.latents_BCHW).to(like))
    return torch.cat(parts)
