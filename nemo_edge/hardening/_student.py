"""The UNet that changes beside the mitigated one that it was: which of its weights are free, and one step of them.

Keeps the mitigated model as the free weights alone. Knows no memories, and not why a lesson is given.
"""

from __future__ import annotations

__all__ = ["ROWS", "Student", "check_memory", "free_weights"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nemo_edge.hardening._lessons import Lesson
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.recipe.hardening import HardeningSettings, Weights
from nemo_edge.system.errors import InputError
from nemo_edge.system.memory import GB, memory_available, room_bytes

ROWS = 8
"""Of each lesson in a step."""
_CLIP = 1.0
"""Largest norm of a step's gradient."""
_COPIES = 4
"""Of the free weights that a run takes: gradients, Adam's two moments, and the mitigated model's."""


def free_weights(unet: nn.Module, weights: Weights) -> dict[str, nn.Parameter]:
    """The parameters of a UNet that may change, by name."""
    return {name: value for name, value in unet.named_parameters() if weights == "all" or ".attn2." in name}


def check_memory(unet: nn.Module, weights: Weights, device: torch.device) -> None:
    """Raise `InputError` where the copies of the free weights have no room beside the model; of a GPU its driver says so."""
    if device.type != "cpu":
        return
    needed, narrower = (
        _COPIES * sum(value.numel() * value.element_size() for value in free_weights(unet, kind).values()) + room_bytes(device)
        for kind in (weights, "cross-attention")
    )
    if needed > memory_available():
        remedy = f"harden the cross-attention alone (--weights cross-attention, {narrower / GB:.1f} GB), or " if narrower < needed else ""
        raise InputError(
            f"hardening takes about {needed / GB:.1f} GB beside the model, and {memory_available() / GB:.1f} GB are free: {remedy}use a "
            "machine with more memory"
        )


@dataclass
class Student:
    """The UNet that changes, the mitigated one that it was, and how it changes."""

    objective: Objective
    free: dict[str, nn.Parameter]
    settings: HardeningSettings
    at_once: int
    teacher: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.teacher = {name: value.detach().clone() for name, value in self.free.items()}
        self.optimiser = torch.optim.Adam(self.free.values(), lr=self.settings.rate)
        self.learns(False)

    def learns(self, yes: bool) -> None:
        """Whether gradients go to the weights; an attack needs none."""
        for value in self.free.values():
            value.requires_grad_(yes)

    def step(self, lessons: Sequence[tuple[Lesson, float]]) -> list[float]:
        """Go one step of the weights on weighted lessons; return the loss of each, unweighted."""
        self.learns(True)
        self.optimiser.zero_grad()
        losses = [self._accumulate(lesson, weight) for lesson, weight in lessons]
        nn.utils.clip_grad_norm_(self.free.values(), _CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.learns(False)
        return losses

    def _accumulate(self, lesson: Lesson, weight: float) -> float:
        total, rows = 0.0, len(lesson.noised.time_B)
        for part in lesson.split(self.at_once):
            with torch.no_grad():
                target = self._answer(part, part.teacher, self.teacher)
            loss = nn.functional.mse_loss(self._answer(part, part.told), target) * (len(target) / rows)
            (weight * loss).backward()
            total += float(loss.detach())
        return total

    def _answer(self, part: Lesson, told: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        conditions = [told[name] for name in self.objective.names]
        fed = (part.noised.x_BCHW, part.noised.time_B.float(), *conditions)
        (output_BCHW,) = self.objective.unet(*fed) if weights is None else functional_call(self.objective.unet, dict(weights), fed)
        answer: Tensor = output_BCHW
        return answer
