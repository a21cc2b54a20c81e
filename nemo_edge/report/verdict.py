"""What the evidence comes to, in plain words: what leaked, what leaks now, what it costs.

Knows the measured values; nothing of HTML or Markdown.
"""

from __future__ import annotations

__all__ = ["GATES", "Leak", "Verdict", "gate_words", "kind_words", "leak_of", "variant_words", "verdict_of"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nemo_edge.groups import all_neurons
from nemo_edge.mitigation import GeneralDrift, Measurement, PromptMitigation, Shown
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.numbers import count, joined, number, ratio

GATES = {
    "schedule_floor": "Prompts whose memory could not be brought below τ",
    "memorization_score": "Most of a memory that is left, as a memorization score",
    "paraphrases": "Share of the prompts' memorized variants that still bring a memory back",
    "replication": "Share of the leaking prompts that still give back a training picture",
    "general_drift": "Mean change of general prompts' pictures, 1 − SSIM",
    "latent_drift": "Mean change of general prompts' latents, relative",
    "diversity_loss": "Share of the general pictures' diversity that is lost",
    "engine_error": "Largest error of the engine against eager PyTorch, relative",
    "mitigation_agreement": "Largest difference of score or distance between engine and eager",
    "mask_of_ones": "Error of the masked engine that silences nothing, against the unmitigated one",
    "slow_down": "Time of the UNet over that of the unmitigated engine",
    "eager_ratio": "Time of the UNet over that of eager PyTorch",
}
"""What each gate asks, by the first part of its name."""

_KINDS = {
    "VM": "verbatim: the whole picture comes back",
    "TM": "template: the layout or an object comes back, details vary",
    "N": "listed as not memorized",
}


@dataclass(frozen=True)
class Leak:
    """How much of the training data one set of pictures gives back."""

    prompts: int
    """Prompts that give back their own training picture."""
    leaking: int
    """Prompts that give back any training picture."""
    of: int
    """Prompts with a known training picture."""
    pictures: int
    """Pictures that are copies of the prompt's own training picture."""
    others: int
    """Copies of another prompt's."""
    total: int
    """Pictures of the prompts with a known training picture: the same for every set."""


@dataclass(frozen=True)
class Verdict:
    """The sentences a reader needs first; one that does not apply is empty."""

    passed: bool
    headline: str
    found: str
    before: str
    after: str
    control: str
    variants: str
    cost: str
    speed: str

    @property
    def lines(self) -> tuple[str, ...]:
        """The sentences that apply, in order, without the headline."""
        return tuple(filter(None, (self.found, self.before, self.after, self.control, self.variants, self.cost, self.speed)))


def verdict_of(evidence: Evidence) -> Verdict:
    """Put the evidence into words."""
    measured = evidence.measurement
    first = measured.variants[0].mitigations
    known = measured.copy_threshold is not None and any(m.before.copies is not None for m in first)
    leaks = _leaks if known else _scores
    return Verdict(
        passed=evidence.passed,
        headline=_headline(evidence),
        found=_found(evidence),
        before=leaks(measured, "before"),
        after=leaks(measured, "after"),
        control=leaks(measured, "random"),
        variants=_variants(evidence),
        cost=_cost(measured),
        speed=_speed(evidence),
    )


def gate_words(name: str) -> str:
    """Say what a gate asks; empty for one that is not known here."""
    return GATES.get(name.partition(".")[0], "")


def kind_words(kind: str) -> str:
    """Say what kind of memory a label stands for."""
    return _KINDS.get(kind.strip().upper(), f"labelled {kind}" if kind else "")


def variant_words(which: str) -> str:
    """Name a set of pictures or a contender."""
    return {
        "before": "before",
        "random": "random control",
        "eager": "eager PyTorch",
        "compiled": "torch.compile",
        "unmitigated": "the unmitigated engine",
    }.get(which, f"after, {which}")


def leak_of(mitigations: Sequence[PromptMitigation], which: str) -> Leak:
    """Count the copies among the pictures of `which`: "before", "after" or "random"."""
    known = [m for m in mitigations if m.before.copies is not None]
    views: list[Shown] = [getattr(m, which) for m in known]
    return Leak(
        prompts=sum(bool(view.copies) for view in views),
        leaking=sum(bool(view.copies or view.others) for view in views),
        of=len(known),
        pictures=sum(view.copies or 0 for view in views),
        others=sum(view.others or 0 for view in views),
        total=sum(m.seeds for m in known),
    )


def _headline(evidence: Evidence) -> str:
    if evidence.passed:
        idle = sum(gate.value is None for gate in evidence.gates)
        rest = f" {count(idle, 'gate').capitalize()} had nothing to judge." if idle else ""
        return f"Every gate passed. This bundle can be shipped.{rest}"
    failed = sum(not gate.passed for gate in evidence.gates)
    return (
        f"{count(failed, 'gate').capitalize()} failed. This bundle must not be shipped." if failed else "This bundle must not be shipped."
    )


def _found(evidence: Evidence) -> str:
    examined, memorized = len(evidence.localizations), sum(found.memorized for found in evidence.localizations)
    if not memorized:
        so = "so no neuron was silenced." if not evidence.measurement.neurons else f"but others were chosen: {_silenced(evidence)}"
        return f"{count(examined, 'prompt').capitalize()} {_were(examined)} examined. None is memorized, {so}"
    which = "this one" if memorized == 1 else "these"
    return (
        f"{count(examined, 'prompt').capitalize()} {_were(examined)} examined; {memorized} {_are(memorized)} memorized: for {which} "
        f"the model draws nearly the same picture from every seed. {_silenced(evidence)}"
    )


def _silenced(evidence: Evidence) -> str:
    """How many neurons are silenced: those that were found, unless the bundle was given others."""
    neurons, found = evidence.measurement.neurons, all_neurons(evidence.groups, evidence.localizations)
    if evidence.facts.get("Neurons", found.content_hash()) == found.content_hash():
        holds = "holds" if neurons == 1 else "hold"
        return f"{neurons} of {found.total} value neurons {holds} the memories and {_are(neurons)} silenced."
    return (
        f"{len(found)} of {found.total} value neurons were found to hold the memories, but others were chosen: "
        f"{count(neurons, 'neuron')} {_are(neurons)} silenced."
    )


def _variants(evidence: Evidence) -> str:
    """What became of the variants of the prompts; empty where none was made."""
    tried = sum(len(group.variants) for group in evidence.groups)
    if not tried:
        return ""
    memorized, before, after = (
        sum(len(getattr(group, which)) for group in evidence.groups) for which in ("memorized", "leaking_before", "leaking_after")
    )
    return (
        f"Small changes of words: {memorized} of {count(tried, 'variant')} of the prompts are memorized too. With the prompts' own neurons "
        f"silenced {before} of them brought a memory back; with those found for the worst of them as well, {after or 'none'} does."
    )


def _were(amount: int) -> str:
    return "was" if amount == 1 else "were"


def _are(amount: int) -> str:
    return "is" if amount == 1 else "are"


def _leaks(measured: Measurement, which: str) -> str:
    if which == "random" and not measured.random_neurons:
        return ""
    if which == "after":
        return _by_variant(measured, "After", lambda mitigations: _leak_words(leak_of(mitigations, "after"), "still "))
    leak = leak_of(measured.variants[0].mitigations, which)
    if which == "before":
        return f"Before: {_leak_words(leak, '')}."
    return f"With {count(measured.random_neurons, 'random neuron')} of the same layers silenced instead: {_leak_words(leak, 'still ')}."


def _leak_words(leak: Leak, still: str) -> str:
    if leak.prompts:
        gives, whose = ("gives", "its") if leak.prompts == 1 else ("give", "their")
        verb = f"{still}{gives}" if still else "gave"
        where = f"in {leak.pictures} of {count(leak.total, 'picture')}"
        text = f"{leak.prompts} of {count(leak.of, 'prompt')} {verb} back {whose} training picture, {where}"
        return text + (f"; {count(leak.others, 'picture')} {_are(leak.others)} a copy of another prompt's" if leak.others else "")
    verb = "gives" if still else "gave"
    text = f"none of {count(leak.of, 'prompt')} {verb} back its training picture, in any of {count(leak.total, 'picture')}"
    return text + (f", but {leak.others} {_are(leak.others)} a copy of another prompt's" if leak.others else "")


def _scores(measured: Measurement, which: str) -> str:
    if which == "before":
        memorized = [m.score_before for m in measured.variants[0].mitigations if m.neurons]
        return (
            f"Before: memorization scores up to {number(_largest(memorized))}, where τ is {number(measured.threshold)}."
            if memorized
            else ""
        )
    if which == "random" or not any(m.neurons for m in measured.variants[0].mitigations):
        return ""

    def left(mitigations: Sequence[PromptMitigation]) -> str:
        return f"at most {number(_largest([m.score_after for m in mitigations if m.neurons]))} of a memory is left"

    return _by_variant(measured, "After", left)


def _by_variant(measured: Measurement, when: str, words: Callable[[Sequence[PromptMitigation]], str]) -> str:
    """One sentence for all variants where they say the same, else one for each."""
    said: dict[str, list[str]] = {}
    for variant in measured.variants:
        said.setdefault(words(variant.mitigations), []).append(variant.variant)
    return " ".join(f"{when}, {joined(names)}: {text}." for text, names in said.items())


def _cost(measured: Measurement) -> str:
    said: dict[str, list[str]] = {}
    for variant in measured.variants:
        said.setdefault(_drift_words(variant.general), []).append(variant.variant)
    return " ".join(f"Cost, {joined(names)}: {text}." for text, names in said.items())


def _drift_words(general: GeneralDrift) -> str:
    change = f"{number(general.mean, 2)} on average and {number(general.largest, 2)} at most"
    text = f"general pictures change by {change} (1 − SSIM; 0 is the same picture)"
    if np.isnan([general.diversity_before, general.diversity_after]).any():
        return text
    return f"{text}, their diversity goes from {general.diversity_before:.3f} to {general.diversity_after:.3f}"


def _speed(evidence: Evidence) -> str:
    if evidence.latency is None:
        return ""
    variants = [v.variant for v in evidence.measurement.variants]
    owners = {"eager": "eager PyTorch's", "unmitigated": "the unmitigated engine's"}
    for target, words in (("pipeline", "a whole picture"), ("unet", "a call of the UNet")):
        said = []
        for variant in variants:
            found = {r: evidence.latency.ratio(target, variant, r) for r in owners}
            times = [f"{ratio(value)} of {owners[name]} time" for name, value in found.items() if value]
            said += [f"{variant} takes {joined(times)}"] if times else []
        if said:
            return f"Speed, {words}: {'; '.join(said)}. In brackets, the 95 % interval."
    return ""


def _largest(values: Sequence[float]) -> float:
    return float(np.max(values)) if values else 0.0
