"""The detectors that a stream of detections can be judged by, and their ROC on labelled prompts."""

from __future__ import annotations

__all__ = ["PAPER", "label_of", "rocs_of"]

from collections.abc import Callable, Sequence

import numpy as np

from nemo_edge.localization.detection import Detection
from nemo_edge.localization.roc import Roc, roc
from nemo_edge.recipe.prompts import Prompt

PAPER = {"MS-SSIM of noise differences": 0.98}
"""AUROC that the literature gives for a detector: the paper's (App. B.4), 500 memorized and 500 other prompts of Stable Diffusion 1.4."""

_NORM = "norm of the guidance difference"


def label_of(prompt: Prompt) -> bool | None:
    """Whether a list says that a prompt is memorized (its type is VM, TM or another) or not (N); None where it says nothing."""
    return prompt.label


def rocs_of(prompts: Sequence[Prompt], found: Sequence[Detection]) -> tuple[Roc, ...]:
    """The ROC of each detector on the prompts that have a label; none where no prompt has one.

    Raises `InputError` where all labels are the same.
    """
    labelled = [(label, each) for label, each in zip(map(label_of, prompts), found, strict=True) if label is not None]
    if not labelled:
        return ()
    seeds = len(labelled[0][1].norms)
    detectors: dict[str, tuple[int, Callable[[Detection], float]]] = {
        next(iter(PAPER)): (seeds, lambda each: each.score),
        f"{_NORM}, {seeds} latents": (seeds, lambda each: float(np.mean(each.norms))),
        f"{_NORM}, 1 latent": (1, lambda each: each.norms[0]),
    }
    split = {label: [each for own, each in labelled if own is label] for label in (True, False)}
    return tuple(
        roc(name, np.array([score(each) for each in split[True]]), np.array([score(each) for each in split[False]]), rows)
        for name, (rows, score) in detectors.items()
    )
