"""The two pairs next to the copy threshold: the last that counts, and the first that does not."""

from __future__ import annotations

import re

from nemo_edge.report._page import page_html
from nemo_edge.report._threshold import known_places, threshold_pairs
from nemo_edge.report.thumbnails import Gallery
from report.test_evidence import evidence, measurement, mitigation, near

MEASURED = near(measurement(), before=(0.1, 0.19, 0.05, 0.2), after=(0.6, 0.21, 0.5, 0.205))
SEEDS = 4


def gallery(seeds: int = SEEDS) -> Gallery:
    sets = ("before", "baked", "masked", "random")
    return Gallery(
        {place: f"data:training-{place}" for place in range(3)},
        {place: {which: [f"data:{place}-{which}-{seed}" for seed in range(seeds)] for which in sets} for place in range(3)},
        {},
    )


def test_they_are_next_to_the_threshold_on_both_sides() -> None:
    below, above = threshold_pairs(evidence(measurement=MEASURED), gallery())
    assert (below.copy, below.distance, below.picture, below.training) == (True, 0.2, "data:0-before-3", "data:training-0")
    assert below.words == "before, prompt 1, seed 3"
    assert (above.copy, above.distance, above.picture, above.training) == (False, 0.205, "data:0-baked-3", "data:training-0")
    assert above.words == "after, baked, prompt 1, seed 3"


def test_only_pictures_that_are_shown_make_a_pair() -> None:
    below, above = threshold_pairs(evidence(measurement=MEASURED), gallery(seeds=2))
    assert (below.distance, above.distance) == (0.19, 0.21)
    assert threshold_pairs(evidence(measurement=MEASURED), Gallery({}, gallery().prompts, {})) == ()


def test_there_may_be_one_or_none() -> None:
    apart = near(measurement(), before=(0.9,) * SEEDS, after=(0.9,) * SEEDS)
    assert [pair.copy for pair in threshold_pairs(evidence(measurement=apart), gallery())] == [False]
    assert threshold_pairs(evidence(), gallery()) == ()  # measured before they were kept
    assert threshold_pairs(evidence(training=False), gallery()) == ()


def test_a_place_among_the_training_pictures_is_that_of_its_prompt() -> None:
    measured = measurement()
    judged = (mitigation(training=False), mitigation(), mitigation())
    variants = tuple(v.model_copy(update={"mitigations": judged}) for v in measured.variants)
    unknown = near(measured.model_copy(update={"variants": variants}), before=(0.9,) * SEEDS, after=(0.2,) * SEEDS)
    assert known_places(unknown) == [1, 2]
    below = threshold_pairs(evidence(measurement=measured.model_copy(update={"variants": unknown.variants[:1]})), gallery())[0]
    assert (below.owner, below.training) == (2, "data:training-1")


def test_the_page_shows_both_with_their_distance() -> None:
    page = page_html(evidence(measurement=MEASURED), gallery())
    assert "✕ counts as a copy</b>: 0.2 ≤ 0.2<br>" in page
    assert re.search(r"✓ is no copy</b>: 0\.205 (>|&gt;) 0\.2<br>", page)
    assert 'alt="before, prompt 1, seed 3"' in page
