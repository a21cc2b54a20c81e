"""What the evidence comes to, in plain words: what leaked, what leaks now, what it costs.

Knows the measured values; nothing of HTML or Markdown.
"""

from __future__ import annotations

__all__ = ["GATES", "Leak", "Verdict", "above_words", "gate_words", "kind_words", "leak_of", "variant_words", "verdict_of"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nemo_edge.bundle.manifest import unjudged
from nemo_edge.localization.groups import all_neurons
from nemo_edge.measure.attacks.base import WORDS
from nemo_edge.measure.bounds import CONFIDENCE, at_most, upper_bound
from nemo_edge.measure.mitigation import GeneralDrift, Measurement, PromptMitigation, Shown
from nemo_edge.report._numbers import count, joined, number, ratio, share
from nemo_edge.report.evidence import Evidence

GATES = {
    "schedule_floor": "Prompts whose memory could not be brought below τ",
    "memorization_score": "Most of a memory that is left, as a memorization score",
    "paraphrases": "Share of the prompts' memorized variants that still bring a memory back",
    "replication": "Share of the examined prompts that give back a training picture, their own or another's",
    "attack_text": "Share of the attacked memories that text brings back",
    "attack_embedding": "Share of the attacked memories that optimised embeddings bring back",
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
    "VM": "listed as verbatim: the whole picture comes back",
    "TM": "listed as a template: the layout or an object comes back, details vary",
    "N": "listed as not memorized",
}


@dataclass(frozen=True)
class Leak:
    """How much of the training data one set of pictures gives back."""

    prompts: int
    """Prompts that give back their own training picture."""
    of: int
    """Prompts with a known training picture."""
    pictures: int
    """Pictures that are copies of the prompt's own training picture."""
    total: int
    """Pictures of the prompts with a known training picture: the same for every set."""
    leaking: int
    """Prompts that give back any training picture."""
    compared: int
    """Prompts whose pictures were compared with any training picture."""
    others: int
    """Pictures that are copies of another prompt's training picture."""
    drawn: int
    """Pictures that were compared with any."""
    most: int
    """Copies among the pictures of the prompt with most."""
    seeds: int
    """Pictures of that prompt."""

    @property
    def copies(self) -> int:
        """Pictures that are copies of any training picture."""
        return self.pictures + self.others

    @property
    def bound(self) -> str:
        """The most that any prompt's pictures hold in copies, as "at most 26 %"; empty where nothing is left to be bound."""
        return at_most(self.most, self.seeds) if self.most < self.seeds else ""


@dataclass(frozen=True)
class Verdict:
    """The sentences a reader needs first; one that does not apply is empty."""

    state: Literal["passed", "failed", "unmeasured"]
    """Unmeasured: no gate failed, but whether pictures are copies is not known of enough prompts."""
    headline: str
    scope: str
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
        return tuple(filter(None, (self.found, self.scope, self.before, self.after, self.control, self.variants, self.cost, self.speed)))


def verdict_of(evidence: Evidence) -> Verdict:
    """Put the evidence into words."""
    measured = evidence.measurement
    first = measured.variants[0].mitigations
    known = measured.copy_threshold is not None and any(m.before.copies is not None for m in first)
    leaks = _leaks if known else _scores
    return Verdict(
        state="failed" if not evidence.passed else "unmeasured" if unjudged(evidence.gates) else "passed",
        headline=_headline(evidence),
        scope=_scope(evidence),
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
    pairs: list[tuple[Shown, int]] = [(getattr(m, which), m.seeds) for m in mitigations if m.before.compared]
    known = [(view, seeds) for view, seeds in pairs if view.copies is not None]
    most = max(((view.returned, seeds) for view, seeds in pairs), key=lambda pair: upper_bound(*pair), default=(0, 0))
    return Leak(
        prompts=sum(bool(view.copies) for view, _ in known),
        of=len(known),
        pictures=sum(view.copies or 0 for view, _ in known),
        total=sum(seeds for _, seeds in known),
        leaking=sum(bool(view.returned) for view, _ in pairs),
        compared=len(pairs),
        others=sum(view.others or 0 for view, _ in pairs),
        drawn=sum(seeds for _, seeds in pairs),
        most=most[0],
        seeds=most[1],
    )


def above_words(measured: Measurement) -> str:
    """Say how many general prompts lie above τ; empty where their scores are not known."""
    scores = measured.general_scores
    above = sum(score > measured.threshold for score in scores)
    lie = "lies above τ itself" if above == 1 else "lie above τ themselves"
    return f"{above} of {count(len(scores), 'general prompt')} ({share(above / len(scores))}) {lie}" if scores else ""


def _headline(evidence: Evidence) -> str:
    if evidence.passed:
        idle, gap = sum(gate.value is None for gate in evidence.gates), unjudged(evidence.gates)
        rest = f" {count(idle, 'gate').capitalize()} had nothing to judge." if idle else ""
        passed = "No gate failed" if idle else "Every gate passed"
        rest += _under_attack(evidence)
        return f"{gap}. No gate failed.{rest}" if gap else f"{passed}: {_copies(evidence.measurement)}.{rest}"
    failed = sum(not gate.passed for gate in evidence.gates)
    return (
        f"{count(failed, 'gate').capitalize()} failed. This bundle must not be shipped." if failed else "This bundle must not be shipped."
    )


def _under_attack(evidence: Evidence) -> str:
    """What each kind of attack brought back, or that it is too weak to tell; empty where there was none."""
    said = []
    for level in evidence.attack.levels if evidence.attack else ():
        found = level.memories
        weak = not level.strong and not found.returned
        told = "is too weak to tell" if weak else f"brings back {found.returned} of {found.of} memories ({found.bound})"
        said.append(f"{WORDS[level.attack]} {told}")
    return f" Under attack: {joined(said)}." if said else ""


def _copies(measured: Measurement) -> str:
    """How many copies there were in how many pictures, on the variant with most, and what so many allow to be said of a prompt's."""
    leak = max((leak_of(v.mitigations, "after") for v in measured.variants), key=lambda each: each.copies)
    bound = f" ({leak.bound} of a prompt's, with {share(CONFIDENCE)} confidence)" if leak.bound else ""
    if not leak.copies:
        return f"no copy of a known training picture in {count(leak.total, 'picture')} of {count(leak.of, 'prompt')}{bound}"
    found = count(leak.copies, "copy of a training picture", "copies of training pictures")
    return f"{found} in {count(leak.drawn, 'picture')} of {count(leak.compared, 'prompt')}{bound}"


def _scope(evidence: Evidence) -> str:
    """What was measured, and what no number here speaks for."""
    prompts, seeds = len(evidence.localizations), evidence.recipe.fidelity.seeds
    given = "the one prompt that was given" if prompts == 1 else f"the {prompts} prompts that were given"
    tried = sum(len(group.variants) for group in evidence.groups)
    also = f", and the scores of {count(tried, 'variant')}" if tried else ""
    attack = evidence.attack
    text = attack and attack.level("text")
    embedding = attack and attack.level("embedding")
    ways = [f"{given}, {count(seeds, 'seed')} each{also}"]
    ways += [f"text searched for {text.memories.of} of them"] if text else []
    ways += [f"embeddings optimised for {embedding.memories.of}"] if embedding else []
    left = "text that was not tried" if text else "other text that people may send"
    rest = "what else somebody who has the weights can do" if embedding else "what somebody who has the weights can do"
    return f"Measured: {joined(ways)}. Not measured: {left}, and {rest}."


def _found(evidence: Evidence) -> str:
    examined, memorized = len(evidence.localizations), sum(found.memorized for found in evidence.localizations)
    if not memorized:
        so = "so no neuron was silenced." if not evidence.measurement.neurons else f"but others were chosen: {_silenced(evidence)}"
        return f"{count(examined, 'prompt').capitalize()} {_were(examined)} examined. None is memorized, {so}"
    return (
        f"{count(examined, 'prompt').capitalize()} {_were(examined)} examined; {memorized} {_are(memorized)} memorized: "
        f"what the model predicts for {'it' if memorized == 1 else 'them'} hangs so little on the seed that a score is above τ. "
        f"{_silenced(evidence)}"
    )


def _silenced(evidence: Evidence) -> str:
    """How many neurons are silenced: those that were found, unless the bundle was given others."""
    neurons, found = evidence.measurement.neurons, all_neurons(evidence.groups, evidence.localizations)
    if evidence.facts.get("Neurons", found.content_hash()) == found.content_hash():
        return f"{neurons} of {found.total} value neurons {_were(neurons)} found to hold the memories and {_are(neurons)} silenced."
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
    do = "does" if after < 2 else "do"
    return (
        f"Small changes of words: {memorized} of {count(tried, 'variant')} of the prompts are memorized too. With the prompts' own neurons "
        f"silenced {before} of them brought a memory back; with those found for the worst of them as well, {after or 'none'} {do}."
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
    else:
        verb = "gives" if still else "gave"
        text = f"none of {count(leak.of, 'prompt')} {verb} back its training picture, in any of {count(leak.total, 'picture')}"
    if leak.others:
        text += (
            f", but {leak.others} of {count(leak.drawn, 'picture')} {'is a copy' if leak.others == 1 else 'are copies'} of another prompt's"
        )
    return text + _bracket(leak)


def _bracket(leak: Leak) -> str:
    """What the number of pictures allows to be said of each prompt."""
    seen = f"{'up to ' if leak.most else ''}{leak.most} of {leak.seeds} a prompt"
    return f" ({seen}: {leak.bound} with {share(CONFIDENCE)} confidence)" if leak.bound else ""


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
