"""Three lights that are read at a glance: the memories, everybody else's pictures, the engine; and what it costs in time, apart.

Each follows its gates, so that no light says other than the verdict. Knows the measured values; nothing of HTML.
"""

from __future__ import annotations

__all__ = ["ASKED", "MARKS", "Light", "lights_of", "time_light"]

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, isnan
from typing import Literal

import numpy as np

from nemo_edge.bundle.manifest import GateResult, unjudged
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.report._leaks import leak_of, worst_leak
from nemo_edge.report._levels import levels_of
from nemo_edge.report._numbers import count, joined, number
from nemo_edge.report.evidence import Evidence

State = Literal["good", "bad", "open"]
Topic = Literal["memories", "others", "engine", "time"]

ASKED: Mapping[Topic, tuple[str, ...]] = {
    "memories": ("schedule_floor", "memorization_score", "paraphrases", "replication", "attack_text", "attack_embedding"),
    "others": ("general_drift", "latent_drift", "diversity_loss"),
    "engine": ("engine_error", "mitigation_agreement", "mask_of_ones"),
    "time": ("slow_down", "eager_ratio"),
}
"""The gates that each light follows, by the first part of their names."""

MARKS: Mapping[State, str] = {"good": "✓", "bad": "✕", "open": "–"}
"""What stands for a state beside its colour."""

_WORDS: Mapping[Topic, tuple[str, str, str]] = {
    "memories": ("Memories", "held back", "not held back"),
    "others": ("Other pictures", "unharmed", "harmed"),
    "engine": ("Engine", "computes what PyTorch does", "computes something else"),
    "time": ("Time", "within its limits", "too slow"),
}


@dataclass(frozen=True)
class Light:
    """The answer to one question."""

    name: str
    state: State
    """Open: nothing was measured that could answer it, or no gate asks."""
    word: str
    figure: str

    @property
    def mark(self) -> str:
        """What stands for the state beside its colour."""
        return MARKS[self.state]


def lights_of(evidence: Evidence) -> tuple[Light, Light, Light]:
    """Return the lights: do the prompts that were sent bring memories back, are others' pictures unharmed, does the engine compute
    what eager does?"""
    memories = _state("memories", evidence)
    if memories == "bad" or any(level.state == "broken" for level in levels_of(evidence)[:2]):
        memories = "bad"
    elif unjudged(evidence.gates):
        memories = "open"
    return (
        _light("memories", memories, _memories(evidence), _failed("memories", evidence), worst_leak(evidence.measurement).prompts > 0),
        _light("others", _state("others", evidence), _others(evidence), _failed("others", evidence)),
        _light("engine", _state("engine", evidence), _engine(evidence), _failed("engine", evidence)),
    )


def time_light(evidence: Evidence) -> Light:
    """Return what it costs in time; of times that are too noisy to decide nothing is judged."""
    said = []
    for target, words in (("pipeline", "a whole picture"), ("unet", "a call of the UNet")):
        for reference, whose in (("eager", "eager PyTorch's"), ("unmitigated", "the unmitigated engine's")):
            slowest = _slowest(evidence, target, reference)
            said += [] if slowest is None else [f"{number(slowest)}× {whose}"]
        if said:
            return _light("time", _state("time", evidence), f"{words}: {joined(said)}", _failed("time", evidence))
    return _light("time", "open", "no times were taken: nemo-edge bench", measured=False)


def _slowest(evidence: Evidence, target: str, reference: str) -> float | None:
    """The ratio of the variant that takes longest."""
    latency, variants = evidence.latency, [v.variant for v in evidence.measurement.variants]
    found = [latency.ratio(target, variant, reference) for variant in variants] if latency else []
    return max((ratio.value for ratio in found if ratio), key=_or_worst, default=None)


def _or_worst(value: float) -> float:
    """What is no number is worse than any."""
    return inf if isnan(value) else value


def _light(topic: Topic, state: State, figure: str, failed: str = "", measured: bool = True) -> Light:
    """A light whose gate failed says first what that gate measured: its figure may be another's."""
    name, good, bad = _WORDS[topic]
    return Light(name, state, {"good": good, "bad": bad, "open": "not judged" if measured else "not measured"}[state], failed + figure)


def _state(topic: Topic, evidence: Evidence) -> State:
    asked = list(_gates(topic, evidence))
    if any(not gate.passed for gate in asked):
        return "bad"
    measured = [not gate.unmeasured for gate in asked]
    decided = all(measured) if topic == "time" else any(measured)  # of noisy times one that is quiet says nothing of the others
    return "good" if asked and decided else "open"


def _failed(topic: Topic, evidence: Evidence) -> str:
    """What the gates that failed have measured, and their limits."""
    return "".join(f"{gate.name} {number(gate.value)}, limit {number(gate.limit)}; " for gate in _gates(topic, evidence) if not gate.passed)


def _gates(topic: Topic, evidence: Evidence) -> Iterator[GateResult]:
    return (gate for gate in evidence.gates if gate.name.partition(".")[0] in ASKED[topic])


def _memories(evidence: Evidence) -> str:
    measured = evidence.measurement
    after, before = worst_leak(measured), leak_of(measured.variants[0].mitigations, "before")
    if not after.prompts:
        left = [m.score_after for v in measured.variants for m in v.mitigations if m.neurons]
        return f"score left {number(float(np.max(left)))} at most, τ is {number(measured.threshold)}" if left else "nothing is memorized"
    embedding = evidence.attack.level("embedding") if evidence.attack else None
    back = embedding.memories if embedding and embedding.memories.returned else None
    still = f"; an owner of the weights still gets {back.returned} of {back.of} back" if back else ""
    return f"{after.copies} of {count(after.pictures, 'picture')} are copies, before {before.copies}{still}"


def _others(evidence: Evidence) -> str:
    drift = max((v.general for v in evidence.measurement.variants), key=lambda general: _or_worst(general.mean))
    prompts = count(len(evidence.measurement.general_prompts), "general prompt")
    return f"{prompts} change by {number(drift.mean, 2)} on average (1 − SSIM){_limit('general_drift', evidence)}"


def _engine(evidence: Evidence) -> str:
    error = float(np.max(_errors(evidence.measurement, evidence.recipe.quantization is not None)))
    return f"largest error {number(error, 2)} of the largest value{_limit('engine_error', evidence)}"


def _errors(measured: Measurement, quantized: bool) -> list[float]:
    untouched = [measured.untouched] if measured.untouched else []
    found = (*(v.trajectory for v in measured.variants), *untouched)
    return [agreement.forced_error if quantized else agreement.largest_error for agreement in found]


def _limit(gate: str, evidence: Evidence) -> str:
    found = next((each for each in evidence.gates if each.name.partition(".")[0] == gate), None)
    return f", limit {number(found.limit)}" if found else ""
