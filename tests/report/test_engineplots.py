"""Errors and times of engines are drawn beside their limits and each other."""

from __future__ import annotations

from math import nan

from nemo_edge.measure.latency import Case
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.report._engineplots import agreement_plots, case_words, latency_plots
from report.test_evidence import agreement, evidence, latency, measurement, recipe, timing


def test_the_error_of_each_step_with_the_limit() -> None:
    plots = {plot.name: plot for plot in agreement_plots(evidence())}
    assert list(plots) == ["error-baked", "error-masked", "error-untouched"]
    assert "at most 4e-6, limit 0.0001" in plots["error-baked"].label
    assert len(plots["error-baked"].rows) == 4
    assert "A value of 0 is drawn at the bottom." in plots["error-untouched"].caption


def test_errors_that_are_not_finite_and_a_gate_that_is_off() -> None:
    measured = measurement(variants=("baked",))
    (variant,) = measured.variants
    broken = variant.model_copy(update={"trajectory": agreement(nan)})
    made = evidence(measurement=measured.model_copy(update={"variants": (broken,)}), recipe=recipe(gates=GateSettings(engine_error=False)))
    (plot,) = agreement_plots(made)
    assert "not a number" in plot.label
    assert "limit" not in plot.label
    assert "12 values that are not finite left out" in plot.caption


def test_a_plot_for_each_case() -> None:
    plots = latency_plots(latency())
    assert [plot.title for plot in plots] == [
        "Text encoder, 1 picture of 64×64",
        "UNet, 1 picture of 64×64",
        "VAE decoder, 1 picture of 64×64",
        "Whole pipeline, 1 picture of 64×64, 10 steps",
    ]
    assert "masked 2.6 ms (noisy)" in plots[0].label.replace("2.63", "2.6")
    assert "· noisy" in plots[0].svg


def test_one_sample_of_one_contender_is_enough() -> None:
    alone = Case(target="unet", batch=2, height=64, width=32, steps=None, timings=(timing("eager", 20_000.0, 0.0, 1),), ratios=())
    assert case_words(alone) == "UNet, 2 pictures of 32×64"
    (plot,) = latency_plots(latency().model_copy(update={"cases": (alone,)}))
    assert "20 s" in plot.svg
