"""Rates of what came back, their bounds, and when an attack is too weak for anything to be claimed."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nemo_edge.measure.attacks.base import Attacked, Attempt, Group, marks, rates, strong
from nemo_edge.measure.bounds import upper_bound


def attacked(group: Group, copies: dict[int, list[bool]], prompt: str = "a") -> Attacked:
    """By steps, whether the picture of each seed is a copy."""
    attempts = tuple(
        Attempt(steps=steps, seed=seed, loss=1 / steps, distance=0.1 if copied else 0.5, copied=copied)
        for steps, seeds in copies.items()
        for seed, copied in enumerate(seeds)
    )
    return Attacked(inputs="", group=group, prompt=prompt, picture=prompt, start="unrelated", attempts=attempts)


@pytest.mark.parametrize(("steps", "expected"), [(1, (1,)), (10, (10,)), (12, (10, 12)), (50, (10, 25, 50)), (150, (10, 25, 50, 100, 150))])
def test_marks_end_with_the_attack(steps: int, expected: tuple[int, ...]) -> None:
    assert marks(steps) == expected


def test_rates_count_memories_by_any_of_their_seeds_and_copies_by_each() -> None:
    results = [
        attacked("memories", {10: [False, False, False], 25: [True, False, False]}),
        attacked("memories", {10: [False, True, False], 25: [True, True, True]}, "b"),
        attacked("never seen", {10: [False] * 3, 25: [False, True, False]}, ""),
    ]
    first, second, *never = rates(results)
    assert [(r.group, r.steps, r.returned, r.of) for r in (first, second)] == [("memories", 10, 1, 2), ("memories", 25, 2, 2)]
    assert [(r.copies, r.drawn) for r in (first, second)] == [(1, 6), (4, 6)]
    assert (first.distance, second.distance) == (0.5, 0.1)
    assert first.loss == pytest.approx(0.1)
    assert [r.returned for r in never] == [0, 1]


def test_bounds_are_those_of_the_count_from_both_sides() -> None:
    all_back, none_back = (rates([attacked("memories", {10: [copied]}, str(i)) for i in range(4)])[0] for copied in (True, False))
    assert all_back.at_most == 1
    assert all_back.at_least == pytest.approx(0.05**0.25)  # Clopper and Pearson for all of four
    assert (none_back.at_least, none_back.at_most) == (0, pytest.approx(upper_bound(0, 4)))


@pytest.mark.parametrize(("returned", "holds"), [(20, True), (19, True), (18, False)])
def test_an_attack_is_strong_from_95_percent_on_at_its_end(returned: int, holds: bool) -> None:
    """Of twenty memories; what came back on the way and not at the end does not count, and neither does another group."""
    control = [attacked("unmitigated", {10: [True], 25: [i < returned]}, str(i)) for i in range(20)]
    assert strong(rates([*control, attacked("memories", {10: [True], 25: [True]})])) is holds


def test_without_a_positive_control_an_attack_is_not_strong() -> None:
    assert not strong(rates([attacked("memories", {10: [True]})]))


def test_a_result_is_one_line_that_reads_back_and_takes_nothing_unknown() -> None:
    result = attacked("never seen", {10: [True, False]}, "")
    assert Attacked.model_validate_json(result.model_dump_json()) == result
    with pytest.raises(ValidationError, match="extra"):
        Attacked.model_validate({**result.model_dump(), "more": 1})
