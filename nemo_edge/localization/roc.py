"""How well a score tells memorized prompts from others: the ROC curve and what it comes to.

Knows scores and labels, not where they come from.
"""

from __future__ import annotations

__all__ = ["Roc", "roc"]

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_edge.system.errors import InputError

_RESAMPLES = 1000


class Roc(BaseModel):
    """One detector on labelled prompts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    detector: str
    rows: int
    """Rows of the UNet that a prompt costs."""
    memorized: int
    general: int
    auroc: float
    """Chance that a memorized prompt scores higher than a general one; a tie counts half."""
    low: float
    high: float
    """The 95 % interval of it, by resampling the prompts of each kind."""
    tpr_at_1: float
    """Share of the memorized prompts found where 1 % of the general ones are taken for memorized."""
    false_positives: tuple[float, ...]
    true_positives: tuple[float, ...]
    """The corners of the curve: shares of general and of memorized prompts at or above a score, from the highest score to the lowest."""


def roc(detector: str, memorized: np.ndarray, general: np.ndarray, rows: int) -> Roc:
    """Return the ROC of scores, [M] of memorized and [G] of general prompts. Raises `InputError` where one kind is missing."""
    if not len(memorized) or not len(general):
        missing = "memorized" if not len(memorized) else "not memorized"
        raise InputError(f"a ROC curve needs prompts of both kinds, and none is labelled {missing}: add some, or leave the labels out")
    rng = np.random.default_rng(0)
    again = [_auroc(rng.choice(memorized, len(memorized)), rng.choice(general, len(general))) for _ in range(_RESAMPLES)]
    low, high = np.percentile(again, [2.5, 97.5])
    levels = np.unique(np.concatenate([memorized, general]))[::-1]
    true, false = (np.concatenate([[0.0], _at_or_above(scores, levels)]) for scores in (memorized, general))
    corners = _corners(true)
    return Roc(
        detector=detector,
        rows=rows,
        memorized=len(memorized),
        general=len(general),
        auroc=_auroc(memorized, general),
        low=float(low),
        high=float(high),
        tpr_at_1=float(true[false <= 0.01].max()),
        false_positives=tuple(false[corners].tolist()),
        true_positives=tuple(true[corners].tolist()),
    )


def _auroc(memorized: np.ndarray, general: np.ndarray) -> float:
    """Mann and Whitney's U over the number of pairs."""
    ordered = np.sort(general)
    below = np.searchsorted(ordered, memorized, "left")
    ties = np.searchsorted(ordered, memorized, "right") - below
    return float((below + ties / 2).mean() / len(general))


def _corners(true: np.ndarray) -> np.ndarray:
    """Where the share of memorized prompts has just grown or is about to; between them the curve is level."""
    grows = np.diff(true) > 0
    found: np.ndarray = np.flatnonzero(np.append(grows, True) | np.insert(grows, 0, True))
    return found


def _at_or_above(scores: np.ndarray, levels: np.ndarray) -> np.ndarray:
    ordered = np.sort(scores)
    return (len(ordered) - np.searchsorted(ordered, levels, "left")) / len(ordered)
