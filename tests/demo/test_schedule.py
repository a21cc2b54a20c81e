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
    for stage in schedule.STAGES:
        if stage.warm_up:
            warm = stage.rate_at(stage.first + stage.warm_up)
            assert 0 < stage.rate_at(stage.first) < 1.1 * warm / stage.warm_up
    last = schedule.stage_at(schedule.STEPS - 1)
    assert last.rate_at(schedule.STEPS - 1) < last.rate / 50
