"""The UNet that changes beside the mitigated one that it was: which of its weights are free, and one step of them.

Keeps the mitigated model as the free weights alone. Knows no memories, and not why a lesson is given.
"""

from __future__ import annotations

__all__ = ["ROWS", "Student", "check_memory", "copied", "free_weights"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
_RANK = 8
"""Of the change of each weight, where it is to be low."""


def free_weights(unet: nn.Module, weights: Weights) -> dict[str, nn.Parameter]:
    """The parameters of a UNet that may change, by name; a change of low rank is one of matrices and kernels."""
    free = dict(unet.named_parameters())
    if weights == "cross-attention":
        return {name: value for name, value in free.items() if ".attn2." in name}
    return {name: value for name, value in free.items() if weights == "all" or value.dim() > 1}


def copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as they are now."""
    return {name: value.detach().clone() for name, value in weights.items()}


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
    teacher: Mapping[str, Tensor]
    """The mitigated model's, of the same names."""

    def __post_init__(self) -> None:
        low = self.settings.weights == "low-rank"
        self._before = copied(self.free) if low else {}
        self.learned: Mapping[str, Tensor] = _factors(self._before) if low else self.free  # what Adam changes
        self.optimiser = torch.optim.Adam(self.learned.values(), lr=self.settings.rate)
        self.learns(False)

    def learns(self, yes: bool) -> None:
        """Whether gradients go to what is learned; an attack needs none."""
        for name, value in [*self.free.items(), *self.learned.items()]:
            value.requires_grad_(yes and name in self.learned)

    def write_(self) -> None:
        """Put what is learned into the UNet, where it is not the UNet's own weights."""
        with torch.no_grad():
            for name, value in (self._changed() or {}).items():
                self.free[name].copy_(value)

    def step(self, lessons: Sequence[tuple[Lesson, float]]) -> list[float]:
        """Go one step of the weights on weighted lessons; return the loss of each, unweighted."""
        self.learns(True)
        self.optimiser.zero_grad()
        losses = [self._accumulate(lesson, weight) for lesson, weight in lessons]
        nn.utils.clip_grad_norm_(self.learned.values(), _CLIP)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.learns(False)
        self.write_()
        return losses

    def _accumulate(self, lesson: Lesson, weight: float) -> float:
        total, rows = 0.0, len(lesson.noised.time_B)
        for part in lesson.split(self.at_once):
            with torch.no_grad():
                target = self._answer(part, part.teacher, self.teacher)
            loss = nn.functional.mse_loss(self._answer(part, part.told, self._changed()), target) * (len(target) / rows)
            (weight * loss).backward()
            total += float(loss.detach())
        return total

    def _answer(self, part: Lesson, told: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        conditions = [told[name] for name in self.objective.names]
        fed = (part.noised.x_BCHW, part.noised.time_B.float(), *conditions)
        (output_BCHW,) = self.objective.unet(*fed) if weights is None else functional_call(self.objective.unet, dict(weights), fed)
        answer: Tensor = output_BCHW
        return answer

    def _changed(self) -> dict[str, Tensor] | None:
        """The weights as they are now, of the factors of their changes; None where they are themselves learned. What is silenced stays."""
        if self.settings.weights != "low-rank":
            return None
        changed = {}
        for name, before in self._before.items():
            change = (self.learned[f"{name}.up"] @ self.learned[f"{name}.down"]).reshape(before.shape)
            changed[name] = before + change * before.flatten(1).any(dim=1).reshape(-1, *[1] * (before.dim() - 1))
        return changed


def _factors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Two factors of a change of each weight, which is 0: LoRA's (Hu et al., arXiv 2106.09685), of kernels as matrices."""
    generator, made = torch.Generator().manual_seed(0), {}
    for name, value in weights.items():
        rows, columns = value.flatten(1).shape
        made[f"{name}.up"] = torch.zeros(rows, _RANK).to(value)
        made[f"{name}.down"] = (torch.randn(_RANK, columns, generator=generator) / columns**0.5).to(value)
    return made
