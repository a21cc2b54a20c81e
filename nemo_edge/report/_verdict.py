"""What the evidence comes to, in plain words: what leaked, what leaks now, what it costs.

Knows the measured values; nothing of HTML or Markdown.
"""

from __future__ import annotations

__all__ = ["GATES", "Verdict", "above_words", "gate_words", "kind_words", "variant_words", "verdict_of"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from nemo_edge.bundle.manifest import unjudged
from nemo_edge.localization.groups import all_neurons
from nemo_edge.measure.attacks.base import WORDS
from nemo_edge.measure.bounds import CONFIDENCE
from nemo_edge.measure.mitigation import GeneralDrift, Measurement, PromptMitigation
from nemo_edge.report._leaks import Leak, leak_of, worst_leak
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
class Verdict:
    """The sentences a reader needs first; one that does not apply is empty."""

    state: Literal["passed", "failed", "unmeasured"]
    """Unmeasured: no gate failed, but whether pictures are copies is not known of enough prompts."""
    judgement: str
    """What the gates come to."""
    claim: str
    """What was found in how many pictures, by each level that was measured, with its bound."""
    scope: str
    found: str
    before: str
    after: str
    control: str
    variants: str
    cost: str
    speed: str

    @property
    def headline(self) -> str:
        """What the gates come to, and what was found."""
        return " ".join(filter(None, (f"{self.judgement}.", self.claim)))

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
        judgement=_judgement(evidence),
        claim=_claim(evidence),
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


def above_words(measured: Measurement) -> str:
    """Say how many general prompts lie above τ; empty where their scores are not known."""
    scores = measured.general_scores
    above = sum(score > measured.threshold for score in scores)
    lie = "lies above τ itself" if above == 1 else "lie above τ themselves"
    return f"{above} of {count(len(scores), 'general prompt')} ({share(above / len(scores))}) {lie}" if scores else ""


def _judgement(evidence: Evidence) -> str:
    if not evidence.passed:
        failed = sum(not gate.passed for gate in evidence.gates)
        why = f"{count(failed, 'gate').capitalize()} failed: t" if failed else "T"
        return f"{why}his bundle must not be shipped"
    idle, gap = sum(gate.value is None for gate in evidence.gates), unjudged(evidence.gates)
    passed = f"No gate failed, {idle} had nothing to judge" if idle else "No gate failed" if gap else "Every gate passed"
    return f"{gap}. {passed}" if gap else passed


def _claim(evidence: Evidence) -> str:
    """One sentence; empty where no copies were counted and nothing was attacked."""
    leak = worst_leak(evidence.measurement)
    said = [_given(leak)] if leak.prompts else []
    for place, level in enumerate(evidence.attack.levels if evidence.attack else ()):
        found = level.memories
        memories = "attacked memories " if not place else ""
        told = f"brings back {found.returned} of {found.of} {memories}({found.bound})"
        said.append(f"{WORDS[level.attack]} {'is too weak to tell' if not level.strong and not found.returned else told}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _given(leak: Leak) -> str:
    """How many copies there are in how many pictures, and what so many allow to be said of a prompt's."""
    bound = f" ({leak.bound} of a prompt's, with {share(CONFIDENCE)} confidence)" if leak.bound else ""
    prompts = f"the {count(leak.prompts, 'examined prompt')}"
    who = f"{leak.leaking or 'none'} of {prompts} {'gives' if leak.leaking < 2 else 'give'} back a known training picture"
    return f"{who}, in {leak.copies or 'any'} of {count(leak.pictures, 'picture')}{bound}"


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
    verb = f"{still}give{'s' if leak.leaking < 2 else ''}" if still else "gave"
    if not leak.leaking:
        verb = verb.removeprefix("still ")
    who = f"{leak.leaking or 'none'} of {count(leak.prompts, 'examined prompt')} {verb} back a known training picture"
    text = f"{who}, in {leak.copies or 'any'} of {count(leak.pictures, 'picture')}"
    if leak.others:
        text += f", {leak.own} of the prompt's own and {leak.others} of another prompt's"
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
