"""The stages of the demo's training follow one another, each with a rate of its own."""

from __future__ import annotations

from itertools import pairwise

from nemo_edge.demo import schedule


def test_stages_begin_one_after_the_other() -> None:
    firsts = [stage.first for stage in schedule.STAGES]
    assert firsts == sorted(set(firsts))
    assert firsts[0] == 0
    assert firsts[-1] < schedule.STEPS
    for before, stage in pairwise(schedule.STAGES):
        assert schedule.stage_at(stage.first) == stage
        assert schedule.stage_at(stage.first - 1) == before


def test_the_rate_warms_up_and_ends_near_nothing() -> None:
    first, last = schedule.stage_at(0), schedule.stage_at(schedule.STEPS - 1)
    assert first.rate_at(0) < first.rate_at(first.warm_up) / 100
    fresh = schedule.stage_at(last.begin)
    assert fresh.rate_at(fresh.first) < fresh.rate_at(fresh.first + fresh.warm_up) / 40
    assert last.rate_at(schedule.STEPS - 1) < last.rate / 50
