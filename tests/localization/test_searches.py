"""Searches over scores that are made up: the published one decides as plain loops do, the grouped one finds 1-minimal sets in few tests."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from nemo_edge.localization._searches import Ask, Lists, Outcome, Search, grouped, highest, published, schedule
from nemo_edge.recipe.settings import LocalizationSettings

TAU = 0.5
Chosen = frozenset[tuple[int, int]]
Score = Callable[[Chosen], tuple[float, ...]]


def chosen(lists: Lists) -> Chosen:
    return frozenset((layer, i) for layer, own in enumerate(lists) for i in own)


@dataclass
class Driven:
    """A search, driven to its end by a function of sets."""

    outcome: Outcome
    asked: list[Ask] = field(default_factory=list)
    tested: set[tuple[Chosen, int | None]] = field(default_factory=set)


def drive(search: Search, score: Score) -> Driven:
    asked, tested = [], set()
    ask = next(search)
    while True:
        asked.append(ask)
        tested |= {(chosen(s), ask.seed) for s in ask.sets}
        answers = [score(chosen(s)) for s in ask.sets]
        try:
            ask = search.send([found if ask.seed is None else (found[ask.seed],) for found in answers])
        except StopIteration as end:
            return Driven(end.value, asked, tested)


def plain(lists: Lists, limit: float, score: Score) -> Lists:
    """Refinement as the official code has it, one test after the other."""
    kept = [list(own) for own in lists]
    for layer in reversed(range(len(kept))):
        if kept[layer]:
            trial = [own if i != layer else [] for i, own in enumerate(kept)]
            if max(score(chosen(trial))) < limit:
                kept = trial
    for layer in reversed(range(len(kept))):
        for neuron in list(kept[layer]):
            trial = [list(own) for own in kept]
            trial[layer].remove(neuron)
            if max(score(chosen(trial))) < limit:
                kept = trial
    return kept


def random_score(seed: int, seeds: int = 3) -> Score:
    """A score without any order in it, the same for the same set; 1 for the empty one."""

    def score(of: Chosen) -> tuple[float, ...]:
        rng = np.random.default_rng([seed, *itertools.chain.from_iterable(sorted(of))])
        return tuple(rng.random(seeds).tolist()) if of else (1.0,) * seeds

    return score


def needed_score(*alternatives: Iterable[tuple[int, int]]) -> Score:
    """Below τ where all neurons of one of the alternatives are silenced."""
    sets = [frozenset(a) for a in alternatives]
    return lambda of: (0.1,) if any(s <= of for s in sets) else (0.9,)


def random_lists(seed: int, layers: int = 7, most: int = 9) -> Lists:
    """Lists as the schedule makes them: outliers ascending, then some again."""
    rng = np.random.default_rng(seed)
    lists = [sorted(rng.choice(40, rng.integers(0, most), replace=False).tolist()) for _ in range(layers)]
    return [own + rng.permutation(own).tolist()[: rng.integers(0, 3)] for own in lists]


def test_the_schedule_is_the_official_codes() -> None:
    """nemo §1.7: θ 5.00 … 1.25 with k 0 … 15; θ = 1 is never evaluated."""
    steps = list(schedule(LocalizationSettings(), widest=1280))
    assert steps == [(5 - 0.25 * i, i) for i in range(16)]


def test_the_schedule_ends_with_all_of_the_widest_layer_too() -> None:
    settings = LocalizationSettings(initial_theta=5, min_theta=1)
    assert list(schedule(settings, widest=3)) == [(5.0, 0), (4.75, 1), (4.5, 2), (4.25, 3)]
    steps = list(schedule(LocalizationSettings(initial_theta=1.0, min_theta=1), widest=1280))
    assert steps == [(1.0, 0)]


@pytest.mark.parametrize("at_once", [1, 2, 5, 64])
@pytest.mark.parametrize("seed", range(12))
def test_the_published_refinement_is_the_plain_one_however_much_is_asked_together(seed: int, at_once: int) -> None:
    lists, score = random_lists(seed), random_score(seed)
    top = max(score(chosen(lists)))
    tau = top + 0.3 * (1 - top) if seed % 3 else top - 1e-9  # every third ends at the floor
    found = drive(published([(1.25, 15)], lambda theta, k: lists, tau, at_once), score)
    assert found.outcome.floor == (seed % 3 == 0)
    limit = top if found.outcome.floor else tau
    assert found.outcome.refined == plain(lists, limit, score)
    assert found.outcome.refined_score == max(score(chosen(found.outcome.refined)))
    assert max(len(ask.sets) for ask in found.asked) <= at_once


def test_the_initial_selection_stops_at_the_first_set_below_the_threshold() -> None:
    steps = [(5.0, 0), (4.75, 1), (4.5, 2), (4.25, 3)]

    def grown(theta: float, k: int) -> Lists:
        return [list(range(k + 1)), []]

    found = drive(published(steps, grown, TAU, 1), needed_score({(0, 2)})).outcome
    assert (found.theta, found.k, found.floor) == (4.5, 2, False)
    assert found.initial == [[0, 1, 2], []]
    assert found.refined == [[2], []]
    none = drive(published(steps, grown, TAU, 1), needed_score({(0, 9)})).outcome
    assert (none.theta, none.k, none.floor) == (4.25, 3, True)
    assert none.refined == none.initial  # nothing is strictly below the floor's score


def by_both(lists: Lists, at_once: int) -> tuple[Search, Search]:
    """The searches of both modes among some candidates, of which the first are the likeliest."""
    steps = [(5.0, 0)]
    return (
        published(steps, lambda theta, k: lists, TAU, at_once),
        grouped(steps, lambda theta, k: lists, lambda n: (-n[0], -n[1]), TAU, 0),
    )


def test_without_candidates_nothing_is_found() -> None:
    for search in by_both([[], []], 1):
        found = drive(search, needed_score({(0, 0)})).outcome
        assert (found.floor, found.refined, found.refined_score) == (True, [[], []], 0.9)


def test_a_score_that_is_no_number_passes_nothing() -> None:
    lists = [[1, 2], [3]]
    assert math.isnan(highest([0.1, math.nan, 0.3]))
    for search in by_both(lists, 4):
        found = drive(search, lambda of: (math.nan,)).outcome
        assert found.floor
        assert found.refined == lists


def test_wrong_guesses_cost_tests_but_no_decision() -> None:
    """Alternating outcomes are the worst case for what is asked together."""
    lists = [list(range(12))]
    score = needed_score({(0, i) for i in range(0, 12, 2)})
    one, many = (drive(published([(5.0, 0)], lambda theta, k: lists, TAU, n), score) for n in (1, 8))
    assert one.outcome == many.outcome
    assert one.outcome.refined == [[0, 2, 4, 6, 8, 10]]
    likely = needed_score({(0, 0)})
    one, many = (drive(published([(5.0, 0)], lambda theta, k: lists, TAU, n), likely) for n in (1, 8))
    assert one.outcome == many.outcome
    assert len(many.asked) < len(one.asked) / 1.5


def is_minimal(found: Lists, limit: float, score: Score) -> bool:
    whole = chosen(found)
    return all(max(score(whole - {n})) >= limit for n in whole)


@pytest.mark.parametrize("seed", range(40))
def test_the_grouped_set_is_1_minimal_and_below_the_limit_whatever_the_scores(seed: int) -> None:
    lists, score = random_lists(seed), random_score(seed)
    top = max(score(chosen(lists)))
    tau = top + 0.3 * (1 - top) if seed % 4 else top - 1e-9
    rng = np.random.default_rng(seed)
    ranks = {n: (float(rng.random()),) for n in chosen(lists)}
    found = drive(grouped([(1.25, 15)], lambda theta, k: lists, ranks.__getitem__, tau, 0), score).outcome
    limit = top if found.floor else tau
    assert found.refined_score == max(score(chosen(found.refined)))
    assert found.refined_score <= limit
    assert chosen(found.refined) <= chosen(lists)
    assert is_minimal(found.refined, limit, score)


def together_score(seed: int, seeds: int = 3) -> tuple[Score, Score]:
    """What each seed scores alone, and together with the others: no less, as a wider data range makes it, and often much more."""
    alone = random_score(seed, seeds)

    def together(of: Chosen) -> tuple[float, ...]:
        gaps = np.random.default_rng([7, seed, *itertools.chain.from_iterable(sorted(of))]).random(seeds) ** 4 / 2
        return tuple(min(1.0, score + gap) for score, gap in zip(alone(of), gaps, strict=True))

    return alone, together


def drive_apart(search: Search, alone: Score, together: Score) -> Outcome:
    ask = next(search)
    while True:
        answers = [together(chosen(s)) if ask.seed is None else (alone(chosen(s))[ask.seed],) for s in ask.sets]
        try:
            ask = search.send(answers)
        except StopIteration as end:
            return end.value


def test_the_grouped_set_holds_with_all_seeds_together_whatever_each_says_alone() -> None:
    """A hundred small searches; in some of them every seed alone lets a set through that all together do not."""
    misled = 0
    for seed in range(100):
        lists, (alone, together) = random_lists(seed, most=4), together_score(seed)
        top = max(together(chosen(lists)))
        tau = top + 0.3 * (1 - top) if seed % 4 else top - 1e-9
        found = drive_apart(grouped([(1.25, 15)], lambda theta, k, own=lists: own, lambda n: n, tau, seed % 3), alone, together)
        limit = top if found.floor else tau
        assert found.refined_score == max(together(chosen(found.refined))) <= limit
        assert is_minimal(found.refined, limit, together)
        by_alone = drive(grouped([(1.25, 15)], lambda theta, k, own=lists: own, lambda n: n, tau, seed % 3), alone).outcome
        misled += max(together(chosen(by_alone.refined))) > limit
    assert misled > 10


def test_each_seed_that_objects_becomes_a_judge() -> None:
    """Every seed needs a neuron of its own, and the first judge sees one of them only."""
    lists = [list(range(20))]
    own = (3, 8, 17)

    def score(of: Chosen) -> tuple[float, ...]:
        return tuple(0.1 if (0, i) in of else 0.9 for i in own)

    found = drive(grouped([(5.0, 0)], lambda theta, k: lists, lambda n: (-n[1],), TAU, 1), score)
    assert found.outcome.refined == [[3, 8, 17]]
    assert found.asked[0].seed == 1


def needed(count: int, of: int, seed: int = 0) -> list[tuple[int, int]]:
    return [(int(i) % 7, int(i) // 7) for i in np.random.default_rng(seed).choice(of, count, replace=False)]


def spread(count: int) -> Lists:
    lists: Lists = [[] for _ in range(7)]
    for i in range(count):
        lists[i % 7].append(i // 7)
    return lists


def cost(count: int, needs: Sequence[tuple[int, int]], mode: str) -> int:
    lists, score = spread(count), needed_score(needs)
    search = by_both(lists, 1)[mode == "fast"]
    found = drive(search, score)
    assert chosen(found.outcome.refined) == frozenset(needs)
    return len({of for of, _ in found.tested if of})


def test_the_tests_of_groups_grow_as_the_logarithm_of_the_candidates() -> None:
    """Ten times as many candidates cost some log₂ 10 tests a neuron more, where one by one they cost nearly ten times as many."""
    costs = {n: cost(n, needed(3, n), "fast") for n in (10, 100, 1000)}
    assert costs[1000] <= costs[100] + 3 * 2 * 4
    assert costs[1000] <= 3 * 2 * 10 + 10
    one_by_one = {n: cost(n, [(0, 0), *needed(2, n)], "paper") for n in (100, 1000)}
    assert one_by_one[1000] > 5 * one_by_one[100]


def test_one_neuron_of_the_highest_rank_takes_two_tests() -> None:
    assert cost(1000, [(0, 0)], "fast") == 2
