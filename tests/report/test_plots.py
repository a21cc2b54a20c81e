"""The plots show what was measured, say it in words, and leave out what was not."""

from __future__ import annotations

from math import nan

import pytest

from nemo_edge.report._plots import cost_plots, neuron_plots, score_plots
from report.test_evidence import evidence, measurement


def test_scores_are_drawn_with_tau() -> None:
    (plot,) = score_plots(evidence())
    assert "general prompts from 0.1 to 0.35" in plot.label
    assert "τ is 0.4" in plot.label
    assert [row[:2] for row in plot.rows] == [("general prompts", "4"), ("memorized prompts before", "3"), ("memorized prompts after", "3")]


def test_neurons_by_prompt_by_layer_and_shared() -> None:
    plots = {plot.name: plot for plot in neuron_plots(evidence())}
    assert list(plots) == ["layers", "z-prompts", "overlap", "z-layers"]
    assert [row[1] for row in plots["layers"].rows] == ["3", "1"]
    assert "3 pairs of 3 share any" in plots["overlap"].label
    assert "6 z-scores" in plots["z-prompts"].label


def test_many_prompts_become_the_forty_with_most_neurons() -> None:
    plots = {plot.name: plot for plot in neuron_plots(evidence(prompts=tuple(f"prompt {i}" for i in range(60))))}
    assert "The 40 prompts with most neurons of 60." in plots["z-prompts"].caption
    assert "overlap of 40 prompts" in plots["overlap"].label
    assert len(plots["overlap"].svg) < 600_000


def test_cost_is_drawn_against_neurons() -> None:
    drift, spread = cost_plots(evidence())
    assert drift.rows[0] == ("1", "neurons found", "0.01")
    assert spread.rows[-1] == ("8", "neurons found and random ones", "0.48")


@pytest.mark.parametrize("prompts", [("$ \\frac{", "<b>", "\x00\u202e"), ("漢字", "🦘", "a" * 500)])
def test_any_prompt_can_be_drawn(prompts: tuple[str, ...]) -> None:
    assert len(neuron_plots(evidence(prompts=prompts))) == 4


def test_nothing_memorized_leaves_the_general_scores() -> None:
    made = evidence(memorized=False)
    assert neuron_plots(made) == ()
    assert cost_plots(made) == ()
    assert len(score_plots(made)) == 1
    assert score_plots(evidence(memorized=False, measurement=measurement(memorized=False, general_scores=()))) == ()


def test_what_is_not_a_number_is_left_out() -> None:
    measured = measurement(general_scores=(nan, 0.1), threshold=nan)
    found = tuple(tuple(n.model_copy(update={"z": nan}) for n in neurons) for neurons in measured.found)
    made = evidence(measurement=measured.model_copy(update={"found": found}))
    assert len(score_plots(made)) == 1
    assert len(neuron_plots(made)) == 4
