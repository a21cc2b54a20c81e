"""Numbers read the same everywhere, and what is no number is said."""

from __future__ import annotations

from math import inf, nan

import pytest

from nemo_edge.measure.latency import Ratio
from nemo_edge.report._numbers import clipped, count, joined, moment, number, ratio, share


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "–"),
        (0, "0"),
        (0.1, "0.1"),
        (0.0625, "0.0625"),
        (0.70535, "0.705"),
        (2.4077e-06, "2.41e-6"),
        (0.0001, "0.0001"),
        (119.4, "119"),
        (99.96, "100"),
        (2587.3, "2587"),
        (-3.14159, "-3.14"),
        (nan, "not a number"),
        (inf, "∞"),
        (-inf, "−∞"),
        (3200000000.0, "3.20e9"),
    ],
)
def test_numbers(value: float | None, written: str) -> None:
    assert number(value) == written


def test_counts_lists_shares_and_ratios() -> None:
    assert (count(0, "prompt"), count(1, "prompt"), count(2, "prompt")) == ("no prompts", "1 prompt", "2 prompts")
    assert (joined([]), joined(["a"]), joined(["a", "b"]), joined(["a", "b", "c"])) == ("", "a", "a and b", "a, b and c")
    assert share(0.321) == "32 %"
    assert ratio(None) == "–"
    assert ratio(Ratio(contender="a", reference="b", value=0.8, low=0.75, high=1.25, rounds=10)) == "0.800 (0.750 to 1.250)"


def test_texts_are_cut_and_dates_are_written_to_the_minute() -> None:
    assert clipped("a\nb\x00c\u202ed", 10) == "a b�c�d"
    assert clipped("a" * 20, 5) == "aaaa…"
    assert moment("2026-01-02T03:04:05Z") == "2026-01-02 03:04 UTC"
    assert (moment("2026-01-02"), moment("yesterday")) == ("2026-01-02", "yesterday")
