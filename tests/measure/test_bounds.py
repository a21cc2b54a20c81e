"""The bound is that of Clopper and Pearson, and is never rounded to less than it is."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import pytest

from nemo_edge.measure.bounds import at_least, at_most, upper_bound


@pytest.mark.parametrize(
    ("found", "of", "bound"),
    [(0, 1, 0.95), (0, 10, 0.258866), (0, 300, 0.00993608), (1, 10, 0.394163), (5, 10, 0.777559), (9, 10, 0.994884), (10, 10, 1.0)],
)
def test_known_values(found: int, of: int, bound: float) -> None:
    """As in printed tables; for none it is 1 - 0.05^(1/n), and for all but one 0.95^(1/n)."""
    assert upper_bound(found, of) == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize(("found", "of"), [(1, 4), (3, 7), (2, 60), (17, 120)])
def test_at_the_bound_so_few_are_seen_once_in_twenty(found: int, of: int) -> None:
    p = Fraction(round(upper_bound(found, of) * 10**9), 10**9)  # exact from here on
    assert sum(Fraction(comb(of, k)) * p**k * (1 - p) ** (of - k) for k in range(found + 1)) == pytest.approx(0.05)


def test_more_found_is_a_higher_bound_and_more_tried_a_lower_one() -> None:
    bounds = [upper_bound(k, 12) for k in range(13)]
    assert bounds == sorted(set(bounds))
    assert upper_bound(0, 20) < upper_bound(0, 10)
    assert upper_bound(0, 0) == 1.0
    assert 500 / 3000 < upper_bound(500, 3000) < 0.18


def test_it_is_written_in_whole_percents_rounded_up() -> None:
    assert at_most(0, 10) == "at most 26 %"
    assert at_most(1, 10) == "at most 40 %"
    assert at_most(0, 300) == "at most 1 %"
    assert at_most(4, 4) == "at most 100 %"


@pytest.mark.parametrize(
    ("found", "of", "expected"), [(4, 4, "at least 47 %"), (20, 20, "at least 86 %"), (1, 2, "at least 2 %"), (0, 4, "at least 0 %")]
)
def test_the_lower_bound_is_rounded_down(found: int, of: int, expected: str) -> None:
    assert at_least(found, of) == expected
