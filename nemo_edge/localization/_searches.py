"""Two ways to look for the value neurons that hold a memory, as generators that ask for scores and are told them.

`published` makes the official code's decisions in its order (Hintersdorf et al. 2024, Alg. 2–4); where code and paper differ, the
code is followed. `grouped` finds a set with the paper's guarantee, that no neuron of it can be given back, in about the logarithm
of its number of tests. Knows neither prompts nor UNets: sets go out, scores come in.
"""

from __future__ import annotations

__all__ = ["Ask", "Lists", "Outcome", "Scores", "Search", "grouped", "highest", "published", "schedule"]

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from nemo_edge.recipe.settings import LocalizationSettings

Lists = list[list[int]]
"""Candidates of each layer in the order of their tests; a neuron can be in a list twice, as in the official code."""
Neuron = tuple[int, int]
"""A layer's number and an index in it."""
Scores = tuple[float, ...]
"""One score a seed."""


@dataclass(frozen=True)
class Ask:
    """Sets whose scores are wanted, one after the other; `limit` is what they will be compared with."""

    sets: tuple[Lists, ...]
    limit: float
    seed: int | None = None
    """One of the kept seeds, by its place among them; none: all of them, scored together."""
    exact: bool = False
    """In float32 by the whole UNet with nothing beside it: what others will be compared with."""


@dataclass(frozen=True)
class Outcome:
    """What a search found."""

    initial: Lists
    theta: float
    k: int
    initial_score: float
    """The highest score of the seeds that were asked: all in `published`, some in `grouped`."""
    floor: bool
    """The schedule ended with a score above τ, which then became the limit of what follows."""
    refined: Lists
    refined_score: float
    """The highest score of all kept seeds."""


_TOGETHER = 5e-3
"""Where a judge's score is nearer to the limit, all seeds are asked at once: 4.3e-3 less than together with the others was seen of a seed
alone. It saves a search that would have to be made again, and decides nothing. Ours."""

Search = Generator[Ask, Sequence[Scores], Outcome]


def schedule(settings: LocalizationSettings, widest: int) -> Iterator[tuple[float, int]]:
    """The θ and k of the initial selection, in order (Alg. 2): θ falls by its step and k grows by one until either is at its end.

    θ's end itself is never evaluated, which is the official code's (it leaves its loop first): 16 steps, from θ 5 and k 0 to θ 1.25
    and k 15. The official code stops at θ = 1 or before k = 1280 only, the width of the widest layer of Stable Diffusion; here these are
    `min_theta` and the step with which every neuron of the `widest` layer, and so of all layers, is selected.
    """
    theta, k = settings.initial_theta, settings.initial_k
    while True:
        yield theta, k
        if theta > settings.min_theta:
            theta, k = theta - settings.theta_step, k + 1
        if theta <= settings.min_theta or k > widest:
            return


def highest(scores: Iterable[float]) -> float:
    """The highest of some scores; not a number where one of them is none."""
    found = list(scores)
    return math.nan if any(map(math.isnan, found)) else max(found)


def published(steps: Iterable[tuple[float, int]], lists_of: Callable[[float, int], Lists], threshold: float, at_once: int) -> Search:
    """Initial selection, then refinement, with the decisions of the official code.

    `steps` are the schedule's, `lists_of` gives the candidates of a θ and a k, `threshold` is τ; no more than `at_once` sets are asked
    for together. Tests are greedy, each on what the one before left; those asked for together assume how the earlier ones come out,
    and answers from the first on that came out otherwise are not used.
    """
    for theta, k in steps:
        lists = lists_of(theta, k)
        [scores] = yield Ask((lists,), threshold)
        initial_score = highest(scores)
        if initial_score <= threshold:
            break
    floor, limit = not initial_score <= threshold, threshold  # a score that is not a number has not passed either
    if floor:
        [scores] = yield Ask((lists,), threshold, exact=True)
        limit = initial_score = highest(scores)
    kept = yield from _without_layers(lists, limit)
    for layer in reversed(range(len(kept))):
        kept = yield from _without_neurons(kept, layer, limit, at_once)
    [scores] = yield Ask((kept,), limit)
    return Outcome(lists, theta, k, initial_score, floor, kept, highest(scores))


def _without_layers(kept: Lists, limit: float) -> Generator[Ask, Sequence[Scores], Lists]:
    """Give back whole layers, from the last (the mid block) to the first: the official code's order, the paper's Alg. 4 has the other."""
    for layer in reversed(range(len(kept))):
        if kept[layer]:
            trial = _with(kept, layer, [])
            [scores] = yield Ask((trial,), limit)
            if highest(scores) < limit:
                kept = trial
    return kept


def _without_neurons(kept: Lists, layer: int, limit: float, at_once: int) -> Generator[Ask, Sequence[Scores], Lists]:
    """Give back single neurons of a layer in the order of its list; of one that is in it twice, the first copy is tried first."""
    waiting, assumed, together = list(kept[layer]), True, 1
    while waiting:
        trials = _trials(kept, layer, waiting[: min(together, at_once)], assumed)
        answers = yield Ask(tuple(trials), limit)
        for trial, scores in zip(trials, answers, strict=True):
            waiting.pop(0)
            dropped = highest(scores) < limit
            if dropped:
                kept = trial
            if dropped != assumed:  # the sets after this one are not what would have been asked
                assumed, together = dropped, 1
                break
        else:
            together *= 2
    return kept


def _trials(kept: Lists, layer: int, neurons: Sequence[int], dropped: bool) -> list[Lists]:
    """Each neuron given back, with those before it given back too, or still in the set."""
    trials, base = [], kept
    for neuron in neurons:
        fewer = list(base[layer])
        fewer.remove(neuron)
        trials.append(_with(base, layer, fewer))
        base = trials[-1] if dropped else kept
    return trials


def _with(lists: Lists, layer: int, chosen: list[int]) -> Lists:
    return [*lists[:layer], chosen, *lists[layer + 1 :]]


def grouped(
    steps: Iterable[tuple[float, int]],
    lists_of: Callable[[float, int], Lists],
    rank: Callable[[Neuron], tuple[float, ...]],
    threshold: float,
    hardest: int,
) -> Search:
    """Initial selection as published, then group testing (after Zeller & Hildebrandt 2002, and Junker 2004, QuickXplain).

    One seed judges, at first the `hardest`, that is the one most like another; what it lets through is asked of all seeds together, as
    the official code scores, and where they object, the one that objects most judges too. A seed alone scores no more than together
    with others, whose wider data range raises every factor of the score: what a judge objects to, all object to. What the judges let
    through, all may object to; where the one that objects most judges already, all decide together from then on. So the outcome is
    below the limit (at τ or below for the initial set), and 1-minimal: with any one of its neurons given back, it is not.
    Candidates are tried in the order of `rank`, the highest first.
    """
    remaining, judges = list(steps), [hardest]
    while True:
        test = _Test(judges, threshold)
        while True:
            theta, k = remaining[0]
            lists = lists_of(theta, k)
            initial_score = yield from test.score(lists)
            if initial_score <= threshold or len(remaining) == 1:
                break
            remaining.pop(0)
        floor = not initial_score <= threshold
        if floor:
            [scores] = yield Ask((lists,), threshold, exact=True)
            initial_score = test.limit = highest(scores)
        order = sorted({(layer, i) for layer, chosen in enumerate(lists) for i in chosen}, key=rank, reverse=True)
        refined = _lists(len(lists), (yield from _minimal(order, test, len(lists))))
        [scores] = yield Ask((refined,), test.limit)
        found = highest(scores)
        if found <= test.limit or not judges:
            return Outcome(lists, theta, k, initial_score, floor, refined, found)
        objects = max(range(len(scores)), key=lambda s: scores[s])
        judges = [] if objects in judges or math.isnan(found) else [*judges, objects]


@dataclass
class _Test:
    """Whether sets stay below the limit on every judge, each alone, or without judges on all seeds together; who objected last is
    asked first."""

    judges: list[int]
    limit: float

    def score(self, lists: Lists) -> Generator[Ask, Sequence[Scores], float]:
        """The score of the first judge who objects, else the highest of all; near the limit all seeds decide together."""
        if not self.judges:
            [together] = yield Ask((lists,), self.limit)
            return highest(together)
        found: Sequence[float] = ()
        for judge in list(self.judges):
            [[score]] = yield Ask((lists,), self.limit, judge)
            found = (*found, score)
            if not score <= self.limit:
                self.judges.sort(key=lambda j: j != judge)
                break
        if abs(highest(found) - self.limit) < _TOGETHER:
            [found] = yield Ask((lists,), self.limit)
        return highest(found)


def _minimal(order: Sequence[Neuron], test: _Test, layers: int) -> Generator[Ask, Sequence[Scores], list[Neuron]]:
    """A 1-minimal part of `order`, which as a whole is known to stay below the limit."""

    def passes(chosen: Sequence[Neuron]) -> Generator[Ask, Sequence[Scores], bool]:
        return bool(chosen) and (yield from test.score(_lists(layers, chosen))) < test.limit  # nothing silenced scores 1

    def without(kept: list[Neuron], group: Sequence[Neuron], needed: bool) -> Generator[Ask, Sequence[Scores], list[Neuron]]:
        """Give back of `group` what can be; it is known that not all of it can where it is `needed`."""
        others = [n for n in kept if n not in group]
        if not needed and (yield from passes(others)):
            return others
        if len(group) == 1:
            return kept
        middle = len(group) // 2
        kept = yield from without(kept, group[middle:], needed=False)
        return (yield from without(kept, group[:middle], needed=not set(group[middle:]) & set(kept)))

    size = 1
    while size < len(order) and not (yield from passes(order[:size])):
        size *= 2
    kept, half = list(order[:size]), size // 2
    if half:
        kept = yield from without(kept, kept[half:], needed=True)
        kept = yield from without(kept, order[:half], needed=False)
    while len(kept) > 1:
        for neuron in reversed(kept):
            fewer = [n for n in kept if n != neuron]
            if (yield from passes(fewer)):
                kept = fewer
                break
        else:
            break
    return kept


def _lists(layers: int, neurons: Iterable[Neuron]) -> Lists:
    lists: Lists = [[] for _ in range(layers)]
    for layer, neuron in sorted(neurons):
        lists[layer].append(neuron)
    return lists
