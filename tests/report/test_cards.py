"""A card shows a prompt's pictures, those that are the same once, and beside each what it is nearest to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nemo_edge.report._cards import SAME, bound_of, card_of, merged
from nemo_edge.report._page import page_html
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.thumbnails import Gallery
from report.test_evidence import evidence, measurement, mitigation, near, shown

SETS = {"before": ["b0", "b1"], "baked": ["x0", "x1"], "masked": ["x0", "x1"], "random": ["r0", "r1"]}


def gallery(**sets: list[str]) -> Gallery:
    return Gallery({0: "data:0", 2: "data:2"}, {0: {**SETS, **sets}}, {0: {name: SETS[name] for name in ("before", "baked", "masked")}})


def with_masked(made: Evidence, **changes: object) -> Evidence:
    """The masked engine measured otherwise on the first prompt."""
    baked, masked = made.measurement.variants
    judged = (mitigation(**changes), *masked.mitigations[1:])
    variants = (baked, masked.model_copy(update={"mitigations": judged}))
    return replace(made, measurement=made.measurement.model_copy(update={"variants": variants}))


def test_sets_of_the_same_pictures_are_one_row_that_says_so() -> None:
    strips = card_of(evidence(), gallery(), 0).strips
    assert [(strip.words, strip.same) for strip in strips] == [("before", ""), ("after, baked and masked", SAME), ("random control", "")]
    assert strips[1].pictures == ("x0", "x1")
    page = page_html(evidence(), gallery())
    assert page.count('src="x0"') == 1 + 1  # of the prompt, and of the general prompt
    assert page.count(SAME) == 1 + 1


def test_one_picture_that_differs_makes_two_rows() -> None:
    strips = card_of(evidence(), gallery(masked=["x0", "y1"]), 0).strips
    assert [strip.words for strip in strips] == ["before", "after, baked", "after, masked", "random control"]
    assert not any(strip.same for strip in strips)


def test_a_control_that_changes_nothing_is_one_row_with_before() -> None:
    strips = card_of(evidence(), gallery(random=SETS["before"]), 0).strips
    assert [strip.words for strip in strips] == ["before and random control", "after, baked and masked"]
    assert strips[0].detail.startswith("before score 0.9")


def test_what_was_measured_otherwise_has_each_its_own_words() -> None:
    strip = card_of(with_masked(evidence(), score_after=0.31), gallery(), 0).strips[1]
    assert strip.detail == "baked score left 0.2 · distance 0.5; masked score left 0.31 · distance 0.5"
    assert (strip.tone, strip.verdict) == ("good", "0 of 4 copies (at most 53 %)")
    assert card_of(with_masked(evidence(), after=shown(1)), gallery(), 0).strips[1].tone == "bad"


def test_each_picture_after_has_the_nearest_of_the_whole_list() -> None:
    card = card_of(evidence(measurement=near(measurement(), after=(0.5, 0.2, 0.1, 0.3))), gallery(), 0)
    assert [len(strip.nearest) for strip in card.strips] == [0, 2, 0]
    assert [(each.owner, each.distance, each.copy, each.there) for each in card.strips[1].nearest] == [
        (1, 0.5, False, True),
        (1, 0.2, True, True),  # at the threshold it counts as a copy
    ]


def test_a_training_picture_is_on_the_page_once_for_all_that_are_near() -> None:
    page = page_html(evidence(measurement=near(measurement())), gallery())
    assert page.count('<symbol id="training-1"') == 1
    assert page.count('<use href="#training-1"/>') == 2
    assert 'aria-label="nearest: training picture of prompt 1"' in page
    assert "measured before" not in page
    left_out = page_html(evidence(measurement=near(measurement())), replace(gallery(), training={}))
    assert "<symbol" not in left_out
    assert "0.5 to that of prompt 1" in left_out


def test_a_bundle_from_before_they_were_kept_is_told_so() -> None:
    page = page_html(evidence(), gallery())
    assert "measured before the nearest training picture of each picture was kept: build it again" in page
    assert "<symbol" not in page
    assert "measured before" not in page_html(evidence(training=False), gallery())


@pytest.mark.parametrize(("view", "bound"), [(shown(1), "at most 76 %"), (shown(4), ""), (shown(None), ""), (shown(None, others=0), "")])
def test_a_bound_is_there_where_a_count_is(view: object, bound: str) -> None:
    assert bound_of(view, 4) == bound  # type: ignore[arg-type]


def test_the_order_is_before_variants_random() -> None:
    views = dict(reversed(SETS.items()))
    assert [names for names, _ in merged(views, evidence())] == [["before"], ["baked", "masked"], ["random"]]
    assert [names for names, _ in merged(views, evidence(), control=False)] == [["before"], ["baked", "masked"]]
