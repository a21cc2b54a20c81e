"""What the copy threshold means, in pictures: the last pair that counts as a copy, and the first that does not.

Knows the distances that were measured and the pictures that the report shows; a picture that is not shown makes no pair.
"""

from __future__ import annotations

__all__ = ["Pair", "known_places", "threshold_pairs"]

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_edge.measure.mitigation import Measurement, Shown
from nemo_edge.report._verdict import variant_words
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.thumbnails import Gallery


@dataclass(frozen=True)
class Pair:
    """A picture that was drawn, and the training picture that it is nearest to."""

    copy: bool
    distance: float
    picture: str
    training: str
    words: str
    """Which picture it is."""
    owner: int
    """The number of the prompt whose training picture it is, from 1."""


def known_places(measured: Measurement) -> list[int]:
    """Return, for each training picture that is known, the place of its prompt among the examined ones."""
    return [place for place, judged in enumerate(measured.variants[0].mitigations) if judged.before.copies is not None]


def threshold_pairs(evidence: Evidence, gallery: Gallery) -> tuple[Pair, ...]:
    """Return the pair just below the threshold and the one just above it, as far as there are any."""
    threshold = evidence.measurement.copy_threshold
    if threshold is None:
        return ()
    found = list(_pairs(evidence, gallery, threshold))
    below = max((pair for pair in found if pair.copy), key=lambda pair: pair.distance, default=None)
    above = min((pair for pair in found if not pair.copy), key=lambda pair: pair.distance, default=None)
    return tuple(pair for pair in (below, above) if pair is not None)


def _pairs(evidence: Evidence, gallery: Gallery, threshold: float) -> Iterator[Pair]:
    known = known_places(evidence.measurement)
    for place, which, view in _shown(evidence.measurement):
        pictures = gallery.prompts.get(place, {}).get(which, ())
        for seed, (picture, near) in enumerate(zip(pictures, view.nearest, strict=False)):
            owner = known[near.training]
            if owner in gallery.training:
                words = f"{variant_words(which)}, prompt {place + 1}, seed {seed}"
                yield Pair(near.distance <= threshold, near.distance, picture, gallery.training[owner], words, owner + 1)


def _shown(measured: Measurement) -> Iterator[tuple[int, str, Shown]]:
    """Each examined prompt's sets of pictures: its place, the set's name, and what was counted."""
    for place, judged in enumerate(measured.variants[0].mitigations):
        yield place, "before", judged.before
        yield place, "random", judged.random
    for variant in measured.variants:
        for place, judged in enumerate(variant.mitigations):
            yield place, variant.variant, judged.after
