"""The plots of the report about engines: their error along the trajectory, and their times."""

from __future__ import annotations

__all__ = ["agreement_plots", "case_words", "latency_plots"]

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nemo_edge.measure.fidelity import Agreement
from nemo_edge.measure.latency import Case, Latency
from nemo_edge.report._canvas import INK, LIMIT, SERIES, Plot, draw
from nemo_edge.report._numbers import count, number
from nemo_edge.report.evidence import Evidence

_CASES = 12
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SAMPLES = 120
"""Samples of a timing that are drawn; beyond, evenly chosen ones."""


def agreement_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """The error of each engine against eager, step by step, with the gate's limit."""
    measured, limit = evidence.measurement, evidence.recipe.engine_tolerance
    plots = [_agreement_plot(v.variant, f"Error, {v.variant}", v.trajectory, limit) for v in measured.variants]
    if measured.untouched is not None:
        plots.append(_agreement_plot("untouched", "Error, masked with nothing silenced", measured.untouched, limit))
    return tuple(plot for plot in plots if plot is not None)


def _agreement_plot(name: str, title: str, agreement: Agreement, limit: float) -> Plot | None:
    lines = {
        "noise prediction": [step.output for step in agreement.steps],
        "latents after the step": [step.latents for step in agreement.steps],
        "noise prediction on eager's latents": [step.forced for step in agreement.steps],
    }
    values = np.array(list(lines.values()), dtype=float)
    if not values.size:
        return None
    positive = values[np.isfinite(values) & (values > 0)]
    floor = float(positive.min()) / 3 if len(positive) else 1e-9

    def paint(axes: Sequence[Axes]) -> None:
        _paint_errors(axes[0], lines, floor, limit)

    caption = _agreement_caption(agreement, values)
    label = f"{title} against eager over {count(values.shape[1], 'step')}: at most {number(agreement.largest_error, 2)}"
    label += f", limit {number(limit, 2)}." if limit else "."
    rows = tuple(
        (str(i + 1), number(s.time, 4), *(number(v, 2) for v in (s.output, s.latents, s.forced))) for i, s in enumerate(agreement.steps)
    )
    header = ("Step", "Time", *lines)
    return Plot(f"error-{name}", title, draw(f"error-{name}", label, paint, height=4.0), caption, label, header, rows)


def _paint_errors(ax: Axes, lines: Mapping[str, Sequence[float]], floor: float, limit: float) -> None:
    for (words, line), style, colour in zip(lines.items(), ("o-", "s-", "^--"), SERIES, strict=False):
        drawn = np.where(np.isfinite(line), np.maximum(line, floor), np.nan)
        ax.plot(np.arange(1, len(line) + 1), drawn, style, color=colour, label=words, markersize=4, linewidth=1.5)
    if limit:
        ax.axhline(limit, color=LIMIT, linestyle="--", linewidth=1.4, label=f"limit of the gate, {number(limit, 2)}")
    ax.set_yscale("log")
    ax.margins(y=0.12)
    ax.set_xlabel("step")
    ax.set_ylabel("largest relative error")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_formatter(lambda value, _: _power(value))
    ax.yaxis.set_minor_formatter("")
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.24))


def _power(value: float) -> str:
    """Write a tick of a logarithmic axis: a power of ten as one."""
    exponent = round(float(np.log10(value)))
    return f"10{str(exponent).translate(_RAISED)}" if np.isclose(value, 10.0**exponent, atol=0) else number(value, 2)


def _agreement_caption(agreement: Agreement, values: np.ndarray) -> str:
    unbound = int((~np.isfinite(values)).sum())
    levels = count(agreement.picture_levels, "grey level")
    caption = f"Pictures differ by {levels} of 255 at most, SSIM {number(agreement.ssim, 5)} at least."
    caption += " A value of 0 is drawn at the bottom." if (values == 0).any() else ""
    return caption + (
        f" {count(unbound, 'value').capitalize()} that {'is' if unbound == 1 else 'are'} not finite left out." if unbound else ""
    )


def latency_plots(latency: Latency) -> tuple[Plot, ...]:
    """The times of every contender side by side, a plot for each case, with their samples."""
    return tuple(_latency_plot(place, case) for place, case in enumerate(latency.cases[:_CASES]))


def _latency_plot(place: int, case: Case) -> Plot:
    title = case_words(case)
    unit, scale = ("s", 1e-3) if max(t.p50_ms for t in case.timings) >= 10_000 else ("ms", 1.0)

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        for row, timing in enumerate(case.timings):
            samples = np.array([s for visit in timing.samples_ms for s in visit]) * scale
            drawn = samples[np.linspace(0, len(samples) - 1, min(len(samples), _SAMPLES)).astype(int)]
            jitter = (np.arange(len(drawn)) * 0.618 % 1 - 0.5) * 0.36
            ax.plot(drawn, row + jitter, "o", color=SERIES[0], alpha=0.28, markersize=3.2, markeredgewidth=0)
            ax.plot([timing.p50_ms * scale] * 2, [row - 0.32, row + 0.32], color=INK, linewidth=2.4)
            middle = np.percentile(samples, [25, 75])
            ax.plot(middle, [row, row], color=SERIES[0], linewidth=5, solid_capstyle="butt", alpha=0.75)
            text = f"{number(timing.p50_ms * scale)} {unit}{' · noisy' if timing.noisy else ''}"
            ax.annotate(
                text, (timing.p50_ms * scale, row - 0.36), (0, 1), textcoords="offset points", ha="center", va="bottom", fontsize=9.5
            )
        ax.set_yticks(range(len(case.timings)), [t.contender for t in case.timings])
        ax.set_ylim(len(case.timings) - 0.5, -0.75)
        ax.set_xlim(left=0)
        ax.set_xlabel(f"time of one call, {unit}")

    said = ", ".join(f"{t.contender} {number(t.p50_ms)} ms{' (noisy)' if t.noisy else ''}" for t in case.timings)
    label = f"Times of {title}, the median of each contender: {said}."
    caption = "The line is the median, the bar holds the middle half of the calls, each dot is one call."
    svg = draw(f"time-{place}", label, paint, height=0.85 + 0.5 * len(case.timings))
    return Plot(f"time-{place}", title, svg, caption, label)


def case_words(case: Case) -> str:
    """Name a case: what runs, at which size."""
    target = {"text_encoder": "Text encoder", "unet": "UNet", "vae_decoder": "VAE decoder", "pipeline": "Whole pipeline"}[case.target]
    steps = "" if case.steps is None else f", {count(case.steps, 'step')}"
    return f"{target}, {count(case.batch, 'picture')} of {case.width}×{case.height}{steps}"
