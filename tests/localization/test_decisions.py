"""A score that is too close to its limit is computed anew, once; the others are taken as they come."""

from __future__ import annotations

import math

import pytest

from nemo_edge.localization._decisions import Decisions
from nemo_edge.localization._searches import Lists, Scores

SET: Lists = [[1], []]


class Exact:
    """Gives the scores it was made with, and counts how often."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.calls = scores, 0

    def __call__(self, lists: Lists, seed: int | None) -> Scores:
        self.calls += 1
        return self.scores if seed is None else (self.scores[seed],)


def test_a_clear_score_is_taken_as_it_comes() -> None:
    exact = Exact(0.4, 0.3)
    decisions = Decisions(exact)
    assert decisions.firm(SET, (0.2, 0.41), 0.5) == (0.2, 0.41)
    assert (exact.calls, decisions.exact) == (0, 0)
    assert decisions.closest == pytest.approx(0.09)


def test_a_close_score_is_computed_anew_and_once() -> None:
    exact = Exact(0.500002, 0.1)
    decisions = Decisions(exact)
    for _ in range(2):
        assert decisions.firm(SET, (0.499999, 0.1), 0.5) == (0.500002, 0.1)
    assert decisions.firm(SET, (0.2,), 0.2, seed=1) == (0.1,)
    assert (exact.calls, decisions.exact) == (2, 2)


def test_the_margin_grows_with_the_errors_that_are_seen() -> None:
    exact = Exact(0.51)
    decisions = Decisions(exact, "fp16")
    assert decisions.firm(SET, (0.53,), 0.2) == (0.51,)  # the first of a narrow type
    assert decisions.firm([[2], []], (0.29,), 0.2) == (0.29,)
    assert decisions.firm([[3], []], (0.27,), 0.2) == (0.51,)  # closer than four times the error seen
    assert exact.calls == 2


def test_a_score_is_computed_anew_where_that_is_asked_for() -> None:
    exact = Exact(0.3)
    assert Decisions(exact).firm(SET, (0.9,), 0.1, exact=True) == (0.3,)


def test_a_set_that_is_compared_with_its_own_score_says_nothing() -> None:
    decisions = Decisions(Exact(0.5))
    decisions.firm(SET, (0.5,), 0.5)
    assert decisions.closest == math.inf
