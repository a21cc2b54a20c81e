"""The policies of a masked bundle: what was found for its memorized prompts, cluster by cluster, and a trigger for each.

Of the model only the text encoders run.
"""

from __future__ import annotations

__all__ = ["make_policies", "policies_stage"]

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from nemo_edge.bundle.policies import POLICIES, Policies, masked_policies
from nemo_edge.bundle.triggers import calibrate_trigger, embed
from nemo_edge.localization.clusters import cluster, words
from nemo_edge.localization.groups import Group, all_neurons, groups_in
from nemo_edge.localization.localizer import Localization, read_results
from nemo_edge.localization.paraphrases import paraphrases
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.system.progress import Progress

MOST = 4000
"""Paraphrases that are made, and general prompts, that are read at the most."""
_OF_EACH = 12
_BATCH = 64
_NAME_WORDS = 8


@dataclass(frozen=True)
class _Cluster:
    """Memorized prompts of the list, what was found for them, and their variants that are memorized too, as far as anybody looked."""

    prompts: tuple[str, ...]
    neurons: NeuronSet
    variants: tuple[str, ...] = ()


def policies_stage(
    checkpoint: Checkpoint, memorized: Sequence[Prompt], general: Sequence[str], localized: Path, folder: Path, progress: Progress
) -> Policies:
    """The stage of a build: the policies of what was localized, which lies in `localized`, in `folder/policies.json`."""
    by_prompt = {result.prompt: result for result in read_results(localized / "localization.jsonl")}
    results = [by_prompt[prompt.text] for prompt in memorized]
    policies = make_policies(checkpoint, memorized, results, groups_in(localized), general, progress)
    policies.save(folder / POLICIES)
    return policies


def make_policies(
    checkpoint: Checkpoint,
    memorized: Sequence[Prompt],
    results: Sequence[Localization],
    groups: Sequence[Group],
    general: Sequence[str],
    progress: Progress | None = None,
) -> Policies:
    """Return the policies of a bundle from what was found: a cluster for each of its groups; where it has none, for each cluster of
    near-duplicates among its memorized prompts.

    The trigger is calibrated against general prompts and paraphrases: those that were found to be memorized, else all that can be made.
    """
    found = all_neurons(groups, results)
    clusters = _of_groups(groups) if groups else _of_prompts(memorized, results)
    if not clusters:
        return masked_policies(found)
    variants, known = _variants(clusters)
    prompts = {name: own.prompts for name, own in clusters.items()}
    total = len(general[:MOST]) + sum(len(texts) for part in (prompts, variants) for texts in part.values())
    with (progress or Progress()).task("policies", total) as advance:
        prompts_PD, variants_VD = (
            {name: _embeddings(checkpoint, texts, advance) for name, texts in part.items()} for part in (prompts, variants)
        )
        general_GD = _embeddings(checkpoint, general[:MOST], advance)
    trigger = calibrate_trigger(prompts_PD, variants_VD, general_GD, known=known)
    return masked_policies(found, clusters={name: own.neurons for name, own in clusters.items()}, trigger=trigger)


def _of_groups(groups: Sequence[Group]) -> dict[str, _Cluster]:
    def cluster_of(group: Group) -> _Cluster:
        listed = tuple(member.prompt for member in group.members if not member.variant)
        return _Cluster(listed, group.neurons, tuple(variant.text for variant in group.memorized))

    return _named({group.name: cluster_of(group) for group in groups})


def _of_prompts(memorized: Sequence[Prompt], results: Sequence[Localization]) -> dict[str, _Cluster]:
    sets = {result.prompt: result.refined for result in results if result.memorized}
    owned = {name: [text for text in texts if text in sets] for name, texts in cluster(memorized).items()}
    return _named({n: _Cluster(tuple(own), reduce(NeuronSet.__or__, (sets[text] for text in own))) for n, own in owned.items() if own})


def _named(clusters: Mapping[str, _Cluster]) -> dict[str, _Cluster]:
    """The clusters by names that a request can have in it: words of small ASCII letters and digits, with hyphens between them."""
    found: dict[str, _Cluster] = {}
    for given, own in clusters.items():
        name = "-".join([*re.findall(r"[a-z0-9]+", " ".join(words(given)))][:_NAME_WORDS])[:80] or "cluster"
        number = 2
        while (numbered := name if name not in found else f"{name}-{number}") in found:
            number += 1
        found[numbered] = own
    return found


def _variants(clusters: Mapping[str, _Cluster]) -> tuple[dict[str, list[str]], bool]:
    """The paraphrases of each cluster to calibrate with, and whether they are known to be memorized; the prompts where there are none."""
    known = {name: list(dict.fromkeys(own.variants)) for name, own in clusters.items() if own.variants}
    if known:  # all of them, since each was found to bring a memory back
        return known, True
    most = max(1, MOST // len(clusters))
    made = {name: list(_made(own.prompts))[:most] for name, own in clusters.items()}
    return {name: texts or list(clusters[name].prompts) for name, texts in made.items()}, False


def _made(prompts: Sequence[str]) -> dict[str, None]:
    return dict.fromkeys(made.text for prompt in prompts for made in paraphrases(prompt, _OF_EACH))


def _embeddings(checkpoint: Checkpoint, texts: Sequence[str], advance: Callable[[int], None]) -> np.ndarray:
    """The embeddings of texts, [len(texts), D]."""
    found = []
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        found.append(embed(checkpoint.encode(part)["encoder_hidden_states"].float().cpu().numpy()))
        advance(len(part))
    return np.concatenate(found)
