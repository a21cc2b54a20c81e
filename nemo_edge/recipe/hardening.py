"""The settings of hardening: how weights are taught not to hold a picture."""

from __future__ import annotations

__all__ = ["HardeningSettings", "Weights"]

from typing import Literal

from pydantic import Field

from nemo_edge.recipe.limits import Count, Rows, Seed
from nemo_edge.recipe.settings import Settings, Start

Weights = Literal["all", "cross-attention", "low-rank"]


class HardeningSettings(Settings):
    """Rounds of an attack on one memory, and a step of the weights against it."""

    rounds: Count = 600
    """One memory each, in turn."""
    weights: Weights = "all"
    """Which of the UNet's are changed: all of them, which takes five times their own size in memory; those of the cross-attention; or all
    matrices and kernels, each by a change of rank 8, which is added to them in the end."""
    rate: float = Field(default=1e-4, gt=0, le=1)
    """Of Adam, for the weights."""
    attack_steps: int = Field(default=6, ge=1, le=10_000)
    """Steps of the embedding in a round; its attack goes on where the last round of that memory left it."""
    restart: Count = 4
    """Rounds of a memory after which its attack begins again, from the next start."""
    starts: tuple[Start, ...] = Field(default=("prompt", "noise", "unrelated"), min_length=1)
    """What an attack begins with: the memory's prompt, noise, or one of the general prompts."""
    surrogates: Rows = 4
    """Pictures of each memorized prompt that the mitigated model draws, to be learned in place of the training picture."""
    general: Count = 64
    """General prompts, the first of the list, whose pictures must stay what they are."""
    keep: float = Field(default=10.0, gt=0, le=1e6)
    """Weight of what must stay, beside what is to be forgotten."""
    seed: Seed = 0
    """Of noise, times and order."""
