"""Prompts that have one set of neurons: clusters of near-duplicates, a whole list, or a prompt with its variants.

A variant of a prompt that brings a memory back is localized too and joins its group, the worst first, until no variant does.
"""

from __future__ import annotations

__all__ = ["GROUPS", "Group", "Groups", "Member", "Variant", "all_neurons", "clusters_of", "groups_in", "read_groups"]

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nemo_edge.localization._times import Time, append_timed, times_beside
from nemo_edge.localization.clusters import cluster
from nemo_edge.localization.localizer import Examined, Localization, Localizer, union
from nemo_edge.localization.paraphrases import Kind, Paraphrase, paraphrases
from nemo_edge.localization.refinement import Suspect, firm_score, refine_together, scores_left
from nemo_edge.localization.trials import Trial
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_json
from nemo_edge.system.journal import read_lines

GROUPS = "groups.jsonl"
"""The file of a bundle, or of a folder of results, that holds its groups."""


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Member(_Result):
    """One memorized prompt of a group."""

    prompt: str
    variant: bool
    """Not of the list, but a variant that brought a memory back."""
    neurons: int
    """Neurons found for it alone."""
    limit: float
    """What its score must stay below: τ, or what the search for it, or all neurons of the group, could not get below."""
    score: float
    """The highest score of its kept seeds with the group's neurons silenced."""
    overlap: float
    """Jaccard index of its own neurons and the group's."""


class Variant(_Result):
    """A variant of a prompt of the group, examined as the prompt itself is."""

    prompt: str
    """Of which it is a variant."""
    text: str
    kind: Kind
    score: float
    """The highest pairwise score of the unmitigated model."""
    before: float | None
    """The highest score with what was found for the group's own prompts silenced; none where the variant is not memorized."""
    after: float | None
    """The same with the group's final set."""


class Group(_Result):
    """Prompts that have one set of neurons."""

    schema_version: Literal[1] = 1
    inputs: str
    """Hash of what the result depends on: that of the localizations, the prompts, and how many variants."""
    name: str
    threshold: float
    members: tuple[Member, ...]
    neurons: NeuronSet
    variants: tuple[Variant, ...]
    same: int
    """Variants that the text encoder reads as a prompt or variant it has read already (most know no case)."""
    samples: int
    """Rows of the UNet that were run for it, those of its prompts alone left out."""
    seconds: float | None = None
    """Wall time; not in the file of groups but beside it. None where nobody knows."""

    @property
    def memorized(self) -> tuple[Variant, ...]:
        """The variants that the unmitigated model has memorized too."""
        return tuple(v for v in self.variants if v.after is not None)

    @property
    def leaking_before(self) -> tuple[Variant, ...]:
        """The variants that brought a memory back, with what was found for the group's own prompts silenced; a score
        that is not a number has not passed either."""
        return tuple(v for v in self.variants if v.before is not None and not v.before <= self.threshold)

    @property
    def leaking_after(self) -> tuple[Variant, ...]:
        """The variants that still do with the final set: those of which no more neurons were found."""
        return tuple(v for v in self.variants if v.after is not None and not v.after <= self.threshold)


@dataclass
class _Variant:
    """A variant on its way."""

    prompt: str
    made: Paraphrase
    examined: Examined
    memorized: bool
    before: float | None = None
    after: float | None = None

    def result(self) -> Variant:
        score = float(self.examined.scores_S.max())
        return Variant(prompt=self.prompt, text=self.made.text, kind=self.made.kind, score=score, before=self.before, after=self.after)


class Groups:
    """Makes groups of one localizer's prompts, each with so many variants of every prompt."""

    def __init__(self, localizer: Localizer, variants: int = 0) -> None:
        self.localizer, self.variants = localizer, variants

    def make_all(
        self,
        clusters: Mapping[str, Sequence[str]],
        results: Sequence[Localization],
        path: Path | None = None,
        report: Callable[[Group], None] = lambda group: None,
    ) -> list[Group]:
        """Return the group of each cluster that has a memorized prompt; `results` are those of all prompts.

        With `path`, append each as a line of JSON and take up what is there already. Raises `InputError` when that was made from
        other inputs.
        """
        by_prompt = {r.prompt: r for r in results if r.memorized}
        known = {group.name: group for group in read_groups(path)} if path is not None and path.is_file() else {}
        made = []
        for name, prompts in clusters.items():
            found = [by_prompt[prompt] for prompt in prompts if prompt in by_prompt]
            if not found:
                continue
            if name in known and known[name].inputs != self.inputs(found):
                raise InputError(f"{path} was made with another checkpoint, prompts or settings: give another folder")
            made.append(known.get(name) or self.make(name, found))
            if path is not None and name not in known:
                append_timed(path, made[-1], Time(of="group", name=name, seconds=made[-1].seconds or 0.0))
            report(made[-1])
        return made

    def make(self, name: str, found: Sequence[Localization]) -> Group:
        """Return the group of some memorized prompts."""
        started = time.monotonic()
        suspects = [self._suspect(each, len(found)) for each in found]
        variants, same = self._read([each.prompt for each in found])
        neurons = refine_together(self.localizer.trials, suspects)
        for variant, score in zip(variants, self._left(variants, neurons), strict=True):
            variant.before = variant.after = score
        samples = sum(variant.examined.subject.rows for variant in variants)
        while (worst := self._worst(variants, suspects)) is not None:
            own = self.localizer.localize(worst.made.text)
            suspects.append(self._suspect(own, len(suspects) + 1, variant=True))
            neurons = refine_together(self.localizer.trials, suspects)
            samples += own.samples
            for variant, score in zip(variants, self._left(variants, neurons), strict=True):
                variant.after = score
        members = self._members(suspects, neurons)
        return Group(
            inputs=self.inputs(found),
            name=name,
            threshold=self.localizer.threshold,
            members=members,
            neurons=neurons,
            variants=tuple(variant.result() for variant in variants),
            same=same,
            samples=samples + sum(suspect.examined.subject.rows for suspect in suspects),
            seconds=time.monotonic() - started,
        )

    def inputs(self, found: Sequence[Localization]) -> str:
        """The hash of what the group of these prompts depends on."""
        return sha256_json([self.localizer.inputs, [each.prompt for each in found], self.variants])

    def _suspect(self, found: Localization, count: int, *, variant: bool = False) -> Suspect:
        """Make a prompt ready that is one of `count`, which share the memory for what is kept."""
        examined = self.localizer.examine(found.prompt, self.localizer.trials.memory_bytes // count)
        self.localizer.trials.keep(examined.subject, found.seeds)
        return Suspect(found, examined, found.initial_score if found.floor else found.threshold, variant)

    def _read(self, prompts: Sequence[str]) -> tuple[list[_Variant], int]:
        """The variants of the prompts, each examined once however many ways lead to it, and how many are read as another."""
        variants, same, read = list[_Variant](), 0, {self._ids(prompt) for prompt in prompts}
        for prompt in prompts:
            for made in paraphrases(prompt, self.variants):
                ids = self._ids(made.text)
                if ids in read:
                    same += 1
                    continue
                read.add(ids)
                examined = self.localizer.examine(made.text, 0)
                seeds = self.localizer.above(examined.scores_S)
                self.localizer.trials.keep(examined.subject, seeds)
                variants.append(_Variant(prompt, made, examined, bool(seeds)))
        return variants, same

    def _ids(self, text: str) -> bytes:
        return b"".join(ids.tobytes() for ids in self.localizer.checkpoint.config.token_ids([text]))

    def _left(self, variants: Sequence[_Variant], neurons: NeuronSet) -> list[float | None]:
        """What is left of each variant's memory, None where nothing was there."""
        memorized = [v for v in variants if v.memorized]
        answers = self.localizer.trials.scores([Trial(v.examined.subject, neurons) for v in memorized])
        limit, asked = self.localizer.threshold, zip(memorized, answers, strict=True)
        firm = {v.made.text: firm_score(v.examined, neurons, scores, limit) for v, scores in asked}
        return [firm.get(v.made.text) for v in variants]

    def _worst(self, variants: Sequence[_Variant], suspects: Sequence[Suspect]) -> _Variant | None:
        """The variant with most of a memory left that is no member yet; None where all are at τ or below."""
        joined = {suspect.found.prompt for suspect in suspects}
        left = [v for v in variants if v.after is not None and not v.after <= self.localizer.threshold and v.made.text not in joined]
        return max(left, key=lambda v: v.after or 0.0, default=None)

    def _members(self, suspects: Sequence[Suspect], neurons: NeuronSet) -> tuple[Member, ...]:
        return tuple(
            Member(
                prompt=suspect.found.prompt,
                variant=suspect.variant,
                neurons=len(suspect.found.refined),
                limit=suspect.limit,
                score=score,
                overlap=suspect.found.refined.jaccard(neurons),
            )
            for suspect, score in zip(suspects, scores_left(self.localizer.trials, suspects, neurons), strict=True)
        )


def clusters_of(prompts: Sequence[Prompt], group_by: Literal["prompt", "cluster", "list"]) -> dict[str, tuple[str, ...]]:
    """Return the texts of the prompts by the name of what has one set of neurons."""
    if group_by == "cluster":
        return cluster(prompts)
    texts = tuple(dict.fromkeys(prompt.text for prompt in prompts))
    return {"list": texts} if group_by == "list" else {text: (text,) for text in texts}


def read_groups(path: Path) -> list[Group]:
    """Read the JSON lines of groups, and their times; a last line that was cut off is left out. Raises `InputError` otherwise."""
    found, times = list(read_lines(Group, path)), times_beside(path, "group")
    return [each.model_copy(update={"seconds": times.get(each.name, each.seconds)}) for each in found]


def groups_in(folder: Path) -> list[Group]:
    """Read the groups in a folder of results, or a bundle; none where nothing was grouped."""
    path = folder / GROUPS
    return read_groups(path) if path.is_file() else []


def all_neurons(groups: Sequence[Group], results: Sequence[Localization]) -> NeuronSet:
    """The neurons of all groups together; where there are no groups, those of all prompts."""
    return reduce(NeuronSet.__or__, (group.neurons for group in groups)) if groups else union(results)
