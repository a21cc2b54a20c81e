"""Which prompts lie near memorized ones: the cosine of what the UNet is told of both, and the threshold from which on that counts.

Knows the states that text encoders give, not the encoders; imports nothing heavy.
Shapes: B prompts, T tokens, D text width, P memorized prompts, V paraphrases, G general prompts, K clusters.
"""

from __future__ import annotations

__all__ = ["Trigger", "TriggerRates", "calibrate_trigger", "embed"]

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from nemo_edge.localization.roc import roc
from nemo_edge.system.errors import InputError

FALSE_ALARMS = 0.01
"""Share of the general prompts that may trigger where they are not all farther than the paraphrases. Ours."""

MARGIN = 0.01
"""What another engine's rounding may move a cosine: a memorized prompt lies at least that far above the threshold. Ours."""

_TINY = 1e-12


class TriggerRates(BaseModel):
    """How well a trigger tells paraphrases of memorized prompts from general prompts, on those that it was calibrated with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    paraphrases: int
    known: bool
    """Whether the paraphrases are those that were found to be memorized; else all that were made, memorized or not."""
    true_positives: float
    """Share of the paraphrases that trigger."""
    general: int
    false_positives: float
    """Share of the general prompts that trigger."""
    auroc: float
    """Chance that a paraphrase scores higher than a general prompt; a tie counts half."""


@dataclass(frozen=True, eq=False)
class _Vectors:
    """A trigger's arrays; never compared, its fields are."""

    centre_D: np.ndarray
    clusters: tuple[np.ndarray, ...]


class Trigger(BaseModel):
    """The memorized prompts of each cluster as directions of their embeddings, and how near a prompt must come.

    An embedding (`embed`) is centred by the mean of general prompts, since the states of all texts share most of their direction.
    Arrays are float32 in base64.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    width: int
    """D."""
    centre: str
    """The mean embedding of general prompts, [D]."""
    prompts: Mapping[str, str]
    """Of each cluster, the unit vectors of its memorized prompts, [P, D]."""
    threshold: float
    """The least score that triggers."""
    rates: TriggerRates | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        for array in (self._vectors.centre_D, *self._vectors.clusters):
            if not len(array) or not np.isfinite(array).all():
                raise ValueError("the embeddings of a trigger are empty or not finite")
        return self

    def scores(self, text_BTD: np.ndarray) -> np.ndarray:
        """Return the largest cosine of each prompt to those of each cluster, [B, K]; 1 for states that are not finite.

        Raises `InputError` for states of another width.
        """
        if text_BTD.shape[-1] != self.width:
            raise InputError(f"the trigger knows text states of width {self.width}, not {text_BTD.shape[-1]}: it is of another model")
        unit_BD = _unit(embed(text_BTD) - self._vectors.centre_D)
        found: np.ndarray = np.nan_to_num(
            np.stack([(unit_BD @ own_PD.T).max(axis=1) for own_PD in self._vectors.clusters], axis=1), nan=1.0
        )
        return found

    @property
    def known(self) -> dict[str, int]:
        """How many memorized prompts are known of each cluster."""
        return {name: len(own_PD) for name, own_PD in zip(self.prompts, self._vectors.clusters, strict=True)}

    @cached_property
    def _vectors(self) -> _Vectors:
        centre_1D, *clusters = (_unpacked(packed, self.width) for packed in (self.centre, *self.prompts.values()))
        return _Vectors(centre_1D.reshape(-1), tuple(clusters))


def embed(text_BTD: np.ndarray) -> np.ndarray:
    """The embeddings of prompts, float32 [B, D]: the mean over all tokens of the states that the UNet's cross-attention reads.

    The padding's states count too, as they do there: they have seen the whole prompt.
    """
    found: np.ndarray = np.asarray(text_BTD, np.float32).mean(axis=1)
    return found


def calibrate_trigger(
    prompts: Mapping[str, np.ndarray],
    paraphrases: Mapping[str, np.ndarray],
    general_GD: np.ndarray,
    *,
    known: bool,
) -> Trigger:
    """Make the trigger of clusters of memorized prompts from embeddings: of `prompts` [P, D] a cluster, and of `paraphrases` [V, D] of
    them; `known` says whether these are memorized for certain.

    Paraphrases that are known to be memorized are memorized prompts themselves: the trigger knows them too, so that none is missed
    however far its caption is. The threshold lies in the middle between the paraphrases and the general prompts where all of the
    former score higher, else as low as `FALSE_ALARMS` lets it be. There a paraphrase is held against the prompts of its own cluster,
    whose neurons it needs, and not against itself.
    """
    centre_D = general_GD.mean(axis=0)
    listed = {name: _unit(own - centre_D) for name, own in prompts.items()}
    variants = {name: _unit(own - centre_D) for name, own in paraphrases.items()}
    whole = {n: np.concatenate([own, variants[n]]) if known and n in variants else own for n, own in listed.items()}
    near_V = np.concatenate([(own @ listed[name].T).max(axis=1) for name, own in variants.items()])
    far_G = (_unit(general_GD - centre_D) @ np.concatenate([*whole.values()]).T).max(axis=1)
    threshold = _threshold(near_V, far_G)
    rates = TriggerRates(
        paraphrases=len(near_V),
        known=known,
        true_positives=float((near_V >= threshold).mean()),
        general=len(far_G),
        false_positives=float((far_G >= threshold).mean()),
        auroc=roc("trigger", near_V, far_G, 0).auroc,
    )
    packed = {name: _packed(own) for name, own in whole.items()}
    return Trigger(width=len(centre_D), centre=_packed(centre_D), prompts=packed, threshold=threshold, rates=rates)


def _threshold(near_V: np.ndarray, far_G: np.ndarray) -> float:
    highest, lowest = float(far_G.max()), float(near_V.min())
    allowed = np.sort(far_G)[::-1][int(FALSE_ALARMS * len(far_G))]
    found = (highest + lowest) / 2 if lowest > highest else float(np.nextafter(allowed, np.float32(2)))
    return min(found, 1 - MARGIN)


def _unit(vectors: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY)
    return found.astype(np.float32)


def _packed(array: np.ndarray) -> str:
    return b64encode(np.ascontiguousarray(array, "<f4").tobytes()).decode()


def _unpacked(text: str, width: int) -> np.ndarray:
    """The rows of what `_packed` wrote. Raises `ValueError` for anything else."""
    return np.frombuffer(b64decode(text, validate=True), "<f4").reshape(-1, width)
