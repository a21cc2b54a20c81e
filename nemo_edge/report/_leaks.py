"""How many pictures are copies of training pictures: one count for every sentence and table of the report.

Every count is of the examined prompts and of all their pictures that were compared, whether a prompt's own training picture is known or
not. Knows measured values; nothing of words.
"""

from __future__ import annotations

__all__ = ["Leak", "leak_of", "worst_leak"]

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_edge.measure.bounds import at_most, upper_bound
from nemo_edge.measure.mitigation import Measurement, PromptMitigation, Shown


@dataclass(frozen=True)
class Leak:
    """How much of the training data one set of pictures gives back."""

    prompts: int
    """Examined prompts whose pictures were compared with a training picture, be it another prompt's: what every count of prompts is of."""
    pictures: int
    """Their pictures: what every count of pictures is of."""
    known: int
    """Prompts whose own training picture is known."""
    leaking: int
    """Prompts that give back any training picture."""
    own: int
    """Pictures that are copies of the prompt's own training picture."""
    others: int
    """Pictures that are copies of another prompt's training picture and not of its own."""
    most: int
    """Copies among the pictures of the prompt with most."""
    seeds: int
    """Pictures of that prompt."""

    @property
    def copies(self) -> int:
        """Pictures that are copies of any training picture."""
        return self.own + self.others

    @property
    def bound(self) -> str:
        """The most that any prompt's pictures hold in copies, as "at most 26 %"; empty where nothing is left to be bound."""
        return at_most(self.most, self.seeds) if self.most < self.seeds else ""


def leak_of(mitigations: Sequence[PromptMitigation], which: str) -> Leak:
    """Count the copies among the pictures of `which`: "before", "after" or "random"."""
    pairs: list[tuple[Shown, int]] = [(getattr(m, which), m.seeds) for m in mitigations if m.before.compared]
    most = max(((view.returned, seeds) for view, seeds in pairs), key=lambda pair: upper_bound(*pair), default=(0, 0))
    return Leak(
        prompts=len(pairs),
        pictures=sum(seeds for _, seeds in pairs),
        known=sum(view.copies is not None for view, _ in pairs),
        leaking=sum(bool(view.returned) for view, _ in pairs),
        own=sum(view.copies or 0 for view, _ in pairs),
        others=sum(view.others or 0 for view, _ in pairs),
        most=most[0],
        seeds=most[1],
    )


def worst_leak(measured: Measurement) -> Leak:
    """Count the copies that are left: each count is that of the variant where it is worst."""
    leaks = [leak_of(v.mitigations, "after") for v in measured.variants]
    densest = max(leaks, key=lambda each: upper_bound(each.most, each.seeds))
    most = max(leaks, key=lambda each: each.copies)
    return replace(most, leaking=max(each.leaking for each in leaks), most=densest.most, seeds=densest.seeds)
