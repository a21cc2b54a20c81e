"""Several prompts' neurons put together and refined together: what can be given back without bringing any of their memories back.

Knows how neurons are found for one prompt only by what `localizer` gives.
"""

from __future__ import annotations

__all__ = ["Suspect", "firm_score", "refine_together", "scores_left"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from nemo_edge.localization._searches import Scores, highest
from nemo_edge.localization.localizer import Examined, Localization
from nemo_edge.localization.trials import Trial, Trials
from nemo_edge.model.neurons import NeuronSet


@dataclass
class Suspect:
    """A memorized prompt, examined and judged on its kept seeds; its score must stay below the limit."""

    found: Localization
    examined: Examined
    limit: float
    variant: bool = False
    """Not of the list, but a variant that brought a memory back."""


def refine_together(trials: Trials, suspects: Sequence[Suspect]) -> NeuronSet:
    """Return the neurons of all suspects, without those that can be given back: no single one of the rest can.

    A suspect that all of them together do not get below its limit is held to what they do, as the official code does where its
    schedule ends; `limit` is raised so. One suspect's own set is returned as it is.
    """
    kept = reduce(NeuronSet.__or__, (suspect.found.refined for suspect in suspects))
    if len(suspects) == 1:
        return kept
    for suspect, score in zip(suspects, scores_left(trials, suspects, kept), strict=True):
        suspect.limit = max(suspect.limit, score)
    while True:
        fewer = _without_single(trials, suspects, kept)
        if fewer == kept:
            return kept
        kept = fewer


def scores_left(trials: Trials, suspects: Sequence[Suspect], neurons: NeuronSet) -> list[float]:
    """The highest score of each suspect's kept seeds with the neurons silenced."""
    answers = trials.scores([Trial(suspect.examined.subject, neurons) for suspect in suspects])
    return [firm_score(suspect.examined, neurons, scores, suspect.limit) for suspect, scores in zip(suspects, answers, strict=True)]


def _without_single(trials: Trials, suspects: Sequence[Suspect], kept: NeuronSet) -> NeuronSet:
    """Give back what can be, the last layers first; first asked is one for which the neuron was found, who objects most often."""
    singles = [_single(kept, layer, i) for layer in reversed(range(len(kept.layers))) for i in kept.indices[layer]]
    owners = [next(suspect for suspect in suspects if len(suspect.found.refined & single)) for single in singles]
    fewer = [kept - single for single in singles]
    answers = trials.scores([Trial(owner.examined.subject, neurons) for owner, neurons in zip(owners, fewer, strict=True)])
    asked = zip(singles, owners, fewer, answers, strict=True)
    free = [single for single, owner, neurons, scores in asked if firm_score(owner.examined, neurons, scores, owner.limit) < owner.limit]
    for single in free:
        left = scores_left(trials, suspects, kept - single)
        if all(score < suspect.limit for suspect, score in zip(suspects, left, strict=True)):
            kept = kept - single
    return kept


def firm_score(examined: Examined, neurons: NeuronSet, scores: Scores, limit: float) -> float:
    """The highest of the scores of a set, in float32 where they are too close to the limit to be trusted."""
    return highest(examined.decisions.firm([list(chosen) for chosen in neurons.indices], scores, limit))


def _single(neurons: NeuronSet, layer: int, index: int) -> NeuronSet:
    return NeuronSet.from_lists(neurons.layers, [[index] if place == layer else [] for place in range(len(neurons.layers))])
