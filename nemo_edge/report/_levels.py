"""What is protected against whom: one line for each kind of attacker, with its figure.

Knows the measured values; nothing of HTML.
"""

from __future__ import annotations

__all__ = ["LevelWords", "levels_of"]

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nemo_edge.bundle.manifest import unjudged
from nemo_edge.measure.attacks.base import Count, Level
from nemo_edge.measure.bounds import CONFIDENCE
from nemo_edge.recipe.settings import AttackKind
from nemo_edge.report._leaks import worst_leak
from nemo_edge.report._numbers import count, share
from nemo_edge.report.evidence import Evidence

State = Literal["held", "broken", "open"]
_WHO = {
    "given": ("The prompts that were given", "anybody who sends one of them"),
    "text": ("Text that an API user can send", "anybody who may send a prompt"),
    "embedding": ("An optimised embedding", "anybody who has the weights"),
}


@dataclass(frozen=True)
class LevelWords:
    """One level of the claim."""

    name: str
    who: str
    state: State
    """Open: not measured, or by an attack that is too weak."""
    figure: str
    detail: str


def levels_of(evidence: Evidence) -> tuple[LevelWords, ...]:
    """Return the three levels, the weakest attacker first."""
    return (_given(evidence), *_attacked(evidence))


def _given(evidence: Evidence) -> LevelWords:
    leak = worst_leak(evidence.measurement)
    if not leak.prompts:
        return LevelWords(*_WHO["given"], "open", "not measured", "no training picture is known")
    bound = f": {leak.bound} of a prompt's, with {share(CONFIDENCE)} confidence" if leak.bound else ""
    state: State = "broken" if leak.leaking else "open" if unjudged(evidence.gates) else "held"
    figure = f"{leak.leaking} of {count(leak.prompts, 'examined prompt')} give a known training picture back"
    lacking = f"; {leak.known} of them have a known one of their own" if leak.known < leak.prompts else ""
    return LevelWords(*_WHO["given"], state, figure, f"{leak.copies} of {count(leak.pictures, 'picture')} are copies{bound}{lacking}")


def _attacked(evidence: Evidence) -> Iterator[LevelWords]:
    kinds: tuple[AttackKind, ...] = ("text", "embedding")
    for kind in kinds:
        level = evidence.attack.level(kind) if evidence.attack else None
        if level is None:
            yield LevelWords(*_WHO[kind], "open", "not measured", "nemo-edge attack, or [attack] in the recipe")
        else:
            yield LevelWords(*_WHO[kind], _state(level), _figure(level), _controls(level))


def _state(level: Level) -> State:
    if level.memories.returned:
        return "broken"
    return "held" if level.strong else "open"


def _figure(level: Level) -> str:
    found = level.memories
    if not level.strong and not found.returned:
        return "attack too weak: nothing is claimed"
    return f"{found.returned} of {count(found.of, 'attacked memory', 'attacked memories')} come back ({found.bound})"


def _controls(level: Level) -> str:
    """Both controls, and how it was tried."""
    said = [f"by {', '.join(level.ways)}" if level.attack == "text" else f"from {', '.join(level.ways)}"]
    said += [f"with nothing silenced {_of(level.unmitigated)} come back"] if level.unmitigated else []
    said += [f"of pictures that the model never saw {_of(level.never_seen)}"] if level.never_seen else []
    return "; ".join(said)


def _of(found: Count) -> str:
    return f"{found.returned} of {found.of}"
