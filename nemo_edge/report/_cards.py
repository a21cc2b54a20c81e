"""The examined prompts with their pictures, a card for each; sets of pictures that are the same are shown once.

Knows measured values and pictures as text; nothing of HTML.
"""

from __future__ import annotations

__all__ = ["PROMPT_LENGTH", "SAME", "Card", "Near", "Strip", "bound_of", "card_of", "merged"]

from collections.abc import Sequence
from dataclasses import dataclass, replace

from nemo_edge.localization.localizer import Localization
from nemo_edge.measure.bounds import at_most
from nemo_edge.measure.mitigation import PromptMitigation, Shown
from nemo_edge.measure.readings import WHOLE
from nemo_edge.report._numbers import clipped, joined, number
from nemo_edge.report._threshold import known_places
from nemo_edge.report._verdict import kind_words, variant_words
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.thumbnails import Gallery, Views

PROMPT_LENGTH = 300
"""Characters of a prompt that a card shows."""

SAME = "the same at this size, shown once"
"""What is said of sets of pictures that are equal as the page shows them."""


@dataclass(frozen=True)
class Near:
    """The training picture that a picture is nearest to, of the whole list."""

    owner: int
    """The number of the prompt whose training picture it is, from 1."""
    distance: float
    copy: bool
    there: bool
    """Whether the report shows that training picture."""


@dataclass(frozen=True)
class Strip:
    """One row of pictures of a prompt: the seeds shown of one engine, or of several that draw the same."""

    words: str
    same: str
    """That several sets of pictures are the same; empty for one."""
    tone: str
    """"good", "bad" or "" where nothing is known of copies."""
    verdict: str
    detail: str
    pictures: Sequence[str]
    nearest: Sequence[Near]
    """Of each picture after the mitigation; empty for other sets, and where they were not kept."""


@dataclass(frozen=True)
class Card:
    """One prompt with its pictures."""

    number: int
    prompt: str
    kind: str
    found: Localization
    training: str | None
    reading: str
    """How the training picture was read, where there was a choice."""
    seeds: int
    shown: int
    strips: Sequence[Strip]


def card_of(evidence: Evidence, gallery: Gallery, place: int) -> Card:
    """Return the card of the prompt at a place among the examined ones."""
    views = gallery.prompts.get(place, {})
    judged = {v.variant: v.mitigations[place] for v in evidence.measurement.variants}
    first = next(iter(judged.values()))
    return Card(
        number=place + 1,
        prompt=clipped(first.prompt, PROMPT_LENGTH),
        kind=kind_words(first.kind),
        found=evidence.localizations[place],
        training=gallery.training.get(place),
        reading=_chosen(first.before),
        seeds=first.seeds,
        shown=max(map(len, views.values()), default=0),
        strips=[
            replace(_strip(names, judged, first, pictures), nearest=_nearest(names, place, evidence, gallery)[: len(pictures)])
            for names, pictures in merged(views, evidence)
        ],
    )


def merged(views: Views, evidence: Evidence, control: bool = True) -> list[tuple[list[str], Sequence[str]]]:
    """Return the sets of pictures in their order, each with the names of those that are the same to the last byte."""
    names = ["before", *(v.variant for v in evidence.measurement.variants), *(["random"] if control else [])]
    found: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        if name in views:
            found.setdefault(tuple(views[name]), []).append(name)
    return [(owners, pictures) for pictures, owners in found.items()]


def _strip(names: Sequence[str], judged: dict[str, PromptMitigation], first: PromptMitigation, pictures: Sequence[str]) -> Strip:
    """Of several sets that are the same, the counts are those of each; where what was measured differs, each has its own."""
    verdicts = {name: _verdict(*_seen(name, judged, first)) for name in names}
    details = {name: _detail(name, *_seen(name, judged, first)) for name in names}
    after = [name for name in names if name in judged]
    words = [*(variant_words(name) for name in names if name not in judged), *([f"after, {joined(after)}"] if after else [])]
    tones = [tone for tone, _ in verdicts.values()]
    return Strip(
        words=joined(words),
        same=SAME if len(names) > 1 else "",
        tone=next((tone for tone in ("bad", "", "good") if tone in tones), ""),
        verdict=_told({name: verdict for name, (_, verdict) in verdicts.items()}),
        detail=_told(details),
        pictures=pictures,
        nearest=(),
    )


def _nearest(names: Sequence[str], place: int, evidence: Evidence, gallery: Gallery) -> list[Near]:
    """What the pictures of a variant are nearest to; of several that are the same, those of the first."""
    measured = evidence.measurement
    threshold, known = measured.copy_threshold, known_places(measured)
    views = [v.mitigations[place].after for v in measured.variants if v.variant in names]
    if threshold is None or not views:
        return []
    owners = [(known[near.training], near.distance) for near in views[0].nearest]
    return [Near(owner + 1, distance, distance <= threshold, owner in gallery.training) for owner, distance in owners]


def _told(said: dict[str, str]) -> str:
    """What holds for all, once; else for each by its name."""
    if len(set(said.values())) == 1:
        return next(iter(said.values()))
    return "; ".join(f"{name} {text}" for name, text in said.items() if text)


def _seen(name: str, judged: dict[str, PromptMitigation], first: PromptMitigation) -> tuple[Shown, PromptMitigation]:
    own = judged.get(name, first)
    return {"before": own.before, "random": own.random}.get(name, own.after), own


def _verdict(shown: Shown, judged: PromptMitigation) -> tuple[str, str]:
    """The tone, and how many are copies."""
    own, others = shown.copies is not None, shown.others or 0
    said = [f"{shown.copies} of {judged.seeds} copies"] if own else []
    said += [f"{others} of another picture" if own else f"{others} of {judged.seeds} copies of another picture"] if others else []
    words, bound = ", ".join(said), bound_of(shown, judged.seeds)
    words += f" ({bound})" if bound else ""
    words += f", {shown.local_copies} with a part of it" if shown.local_copies else ""
    return "bad" if shown.returned else "good" if own and not shown.local_copies else "", words


def _detail(name: str, shown: Shown, judged: PromptMitigation) -> str:
    """Scores and distances."""
    score = {"before": judged.score_before, "random": None}.get(name, judged.score_after if judged.neurons else None)
    facts = [f"{'score' if name == 'before' else 'score left'} {number(score)}"] if score is not None else []
    reading = f" ({_chosen(shown)})" if _chosen(shown) else ""
    facts += [f"distance {number(shown.distance)}{reading}"] if shown.distance is not None else []
    facts += [f"windowed {number(shown.local_distance)}"] if shown.local_distance is not None else []
    facts += [f"SSCD {number(shown.sscd)}"] if shown.sscd is not None else []
    return " · ".join(facts)


def _chosen(shown: Shown) -> str:
    """The reading of the training picture that counted; empty where there was no choice."""
    return "" if shown.reading == WHOLE else shown.reading


def bound_of(shown: Shown, seeds: int) -> str:
    """Return how many of a prompt's pictures are copies at the most; empty where no count is shown, or all are."""
    counted = shown.copies is not None or bool(shown.others)
    return at_most(shown.returned, seeds) if counted and shown.returned < seeds else ""
