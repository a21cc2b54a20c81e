"""The plots of the report about the model: scores, neurons, and what silencing them costs.

Each function returns the plots that the evidence has values for; the times and errors of engines are drawn in `engineplots`.
"""

from __future__ import annotations

__all__ = ["cost_plots", "neuron_plots", "score_plots"]

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import isfinite

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nemo_edge.localization.localizer import Localization
from nemo_edge.measure.mitigation import CurvePoint, FoundNeuron, Measurement
from nemo_edge.report._canvas import INK, LIMIT, LINE, SERIES, SOFT, Plot, draw
from nemo_edge.report._numbers import clipped, count, number
from nemo_edge.report._verdict import above_words
from nemo_edge.report.evidence import Evidence

_SHOWN = 40
"""Prompts that one plot has room for."""
_DOTS = 150
"""Dots that one row of a plot has room for."""


def score_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """The memorization scores of general and of memorized prompts, with τ."""
    measured = evidence.measurement
    views = list(zip(*(v.mitigations for v in measured.variants), strict=True))
    before = _finite(m[0].score_before for m in views if m[0].neurons)
    after = _finite(max(each.score_after for each in m) for m in views if m[0].neurons)
    general = _finite(measured.general_scores)
    if not (len(before) or len(general)):
        return ()

    def paint(axes: Sequence[Axes]) -> None:
        bins = np.linspace(min(0.0, *general, *before, *after), max(1.0, *general, *before, *after), 41).tolist()
        axes[0].hist(general, bins, color=SERIES[0], alpha=0.85)
        axes[0].set_title("General prompts")
        axes[1].hist(after, bins, color=SERIES[1], label="after")
        axes[1].hist(before, bins, color=SERIES[2], label="before", alpha=0.8)
        axes[1].set_title("Memorized prompts")
        axes[1].legend(loc="upper center", ncols=2)
        axes[1].set_xlabel("highest memorization score (MS-SSIM of noise differences)")
        for ax in axes:
            ax.axvline(measured.threshold, color=LIMIT, linestyle="--", linewidth=1.4)
            ax.set_ylabel("prompts")
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[0].text(measured.threshold, 0.97, " τ ", transform=axes[0].get_xaxis_transform(), va="top", color=LIMIT)

    sets = {"general prompts": general, "memorized prompts before": before, "memorized prompts after": after}
    said = "; ".join(f"{name} {_range(values)}" for name, values in sets.items() if len(values))
    rows = tuple((name, str(len(v)), *(number(x) for x in np.percentile(v, [0, 50, 100]))) for name, v in sets.items() if len(v))
    above = f"; {above_words(measured)}" if measured.general_scores else ""
    caption = f"A prompt above τ = {number(measured.threshold)} counts as memorized{above}. After: the highest of all variants' engines."
    label = f"Histogram of memorization scores: {said}; τ is {number(measured.threshold)}."
    svg = draw("scores", label, paint, height=3.7, panels=2)
    return (Plot("scores", "Memorization scores", svg, caption, label, ("Prompts", "Number", "Lowest", "Median", "Highest"), rows),)


def neuron_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """Where the neurons are, how far their activations stand out, and which prompts share them."""
    found = [(i, neurons) for i, neurons in enumerate(evidence.measurement.found) if neurons]
    if not found:
        return ()
    shown = sorted(sorted(found, key=lambda each: -len(each[1]))[:_SHOWN])
    results = [evidence.localizations[i] for i, _ in shown]
    names = [f"{clipped(result.prompt, 22)} · {i + 1}" for (i, _), result in zip(shown, results, strict=True)]
    left_out = "" if len(shown) == len(found) else f" The {len(shown)} prompts with most neurons of {len(found)}."
    plots = [_layer_plot(evidence), _z_by_prompt([neurons for _, neurons in shown], names, left_out)]
    plots += [_overlap_plot(results, names, left_out)] if len(shown) > 1 else []
    return (*plots, _z_by_layer(evidence.measurement))


def _layer_plot(evidence: Evidence) -> Plot:
    layers = evidence.localizations[0].refined.layers
    union = [{n.neuron for neurons in evidence.measurement.found for n in neurons if n.layer == i} for i in range(len(layers))]
    amounts, labels = [len(chosen) for chosen in union], [_short(layer.name) for layer in layers]

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        ax.barh(range(len(layers)), amounts, color=SERIES[0], height=0.65)
        for i, amount in enumerate(amounts):
            ax.annotate(str(amount), (amount, i), (4, 0), textcoords="offset points", va="center", color=INK, fontsize=9.5)
        _prompts_axis(ax, labels)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_xlim(0, max(amounts) * 1.08)
        ax.set_xlabel("neurons silenced")

    rows = tuple((layer.name, str(amount), str(layer.width)) for layer, amount in zip(layers, amounts, strict=True))
    label = f"Bars of the neurons silenced in each value layer: {', '.join(f'{a} in {n}' for n, a in zip(labels, amounts, strict=True))}."
    svg = draw("layers", label, paint, height=_tall(len(layers)))
    caption = f"{count(sum(amounts), 'neuron')} of all memorized prompts together, in the UNet's order of layers."
    return Plot("layers", "Neurons per layer", svg, caption, label, ("Layer", "Silenced", "Of"), rows)


def _z_by_prompt(found: Sequence[Sequence[FoundNeuron]], names: Sequence[str], left_out: str) -> Plot:
    groups = [_finite(n.z for n in neurons) for neurons in found]
    caption = f"Each dot is a neuron: how many standard deviations its activation on this prompt is from general prompts'.{left_out}"
    return _strips("z-prompts", "Neurons found, by prompt", groups, names, caption)


def _z_by_layer(measured: Measurement) -> Plot:
    groups = [_finite(n.z for neurons in measured.found for n in neurons if n.layer == i) for i in range(len(measured.layers))]
    caption = "The same neurons by layer; one that several prompts share is there once for each."
    return _strips("z-layers", "Neurons found, by layer", groups, [_short(name) for name in measured.layers], caption)


def _strips(name: str, title: str, groups: Sequence[np.ndarray], names: Sequence[str], caption: str) -> Plot:
    values = np.concatenate(groups)

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        for place, group in enumerate(groups):
            shown = _thinned(group)
            ax.plot(shown, np.full(len(shown), place), "o", color=SERIES[0], alpha=0.6, markersize=5, markeredgewidth=0)
        ax.axvline(0, color=SOFT, linewidth=0.9)
        _prompts_axis(ax, names)
        ax.set_xlabel("z-score of the activation")

    label = f"Dots of {count(len(values), 'z-score')} in {len(groups)} rows, {_range(values)}."
    rows = tuple(
        (each, str(len(group)), number(float(group.min())), number(float(group.max())))
        for each, group in zip(names, groups, strict=True)
        if len(group)
    )
    svg = draw(name, label, paint, height=_tall(len(groups)))
    return Plot(name, title, svg, caption, label, ("Row", "Neurons", "Lowest z", "Highest z"), rows)


def _thinned(values: np.ndarray) -> np.ndarray:
    """The values, or `_DOTS` of them from the lowest to the highest: a page of many prompts stays small."""
    places = np.linspace(0, len(values) - 1, min(len(values), _DOTS)).astype(int)
    kept: np.ndarray = np.sort(values)[places]
    return kept


def _overlap_plot(results: Sequence[Localization], names: Sequence[str], left_out: str) -> Plot:
    size = len(results)
    overlap = np.array([[a.refined.jaccard(b.refined) for b in results] for a in results])

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        for row, column in zip(*np.nonzero(overlap), strict=True):
            corner = (column - 0.46, row - 0.46)
            strength = float(overlap[row, column])
            colour, alpha = (LINE, 1.0) if row == column else (SERIES[0], 0.15 + 0.85 * strength)
            ax.add_patch(Rectangle(corner, 0.92, 0.92, facecolor=colour, alpha=alpha, linewidth=0))
        _prompts_axis(ax, names)
        ax.set_xlim(-0.6, size - 0.4)
        numbers = [name.rpartition(" ")[2] for name in names]
        ax.set_xticks(range(size), numbers, fontsize=8.5 if size <= 20 else 6.5, rotation=0 if size <= 20 else 90)
        ax.grid(visible=False)

    pairs = sorted(((overlap[i, j], i, j) for i, j in combinations(range(size), 2) if overlap[i, j]), reverse=True)
    rows = tuple((names[i], names[j], number(float(value), 2)) for value, i, j in pairs[:20])
    label = f"Matrix of the overlap of {size} prompts' neurons: {count(len(pairs), 'pair')} of {size * (size - 1) // 2} share any."
    shared = "the darker, the more they share" if pairs else "no two of them share any"
    caption = f"Jaccard index of two prompts' neurons: {shared}. Columns in the order of the rows.{left_out}"
    svg = draw("overlap", label, paint, height=_tall(size) + 0.2)
    return Plot("overlap", "Neurons that prompts share", svg, caption, label, ("Prompt", "Prompt", "Jaccard"), rows)


def cost_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """What general prompts pay, against the number of neurons silenced."""
    curve = evidence.measurement.curve
    if len(curve) < 2:
        return ()
    drift = _curve(
        "drift",
        "Change of general pictures",
        "1 − SSIM",
        curve,
        lambda point: point.drift,
        "Against the unmitigated model; 0 is the same picture. The line is at the number of neurons that the build silences.",
        evidence.measurement.neurons,
    )
    spread = _curve(
        "diversity",
        "Diversity of general pictures",
        "1 − SSIM between seeds",
        curve,
        lambda point: point.diversity,
        "How much the pictures of one prompt differ from seed to seed; it should stay level.",
        evidence.measurement.neurons,
    )
    return drift, spread


def _curve(
    name: str, title: str, axis: str, curve: Sequence[CurvePoint], value: Callable[[CurvePoint], float], caption: str, neurons: int
) -> Plot:
    words = {"found": "neurons found", "random": "neurons found and random ones"}
    lines = {chosen: sorted((p.neurons, value(p)) for p in curve if p.chosen == chosen) for chosen in words}
    if lines["random"] and lines["found"]:
        lines["random"] = [lines["found"][-1], *lines["random"]]

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        ax.axvline(neurons, color=LIMIT, linestyle="--", linewidth=1.2)
        for (chosen, points), style, colour in zip(lines.items(), ("o-", "s--"), (SERIES[0], SERIES[2]), strict=True):
            if points:
                ax.plot(*zip(*points, strict=True), style, color=colour, label=words[chosen], markersize=5)
        ax.legend(loc="best")
        amounts = sorted({point.neurons for point in curve if point.neurons > 0})
        if amounts:
            ax.set_xscale("log")
            ax.set_xticks(amounts, [str(amount) for amount in amounts])
            ax.set_xticks([], minor=True)
        ax.set_xlabel("neurons silenced")
        ax.set_ylabel(axis)
        top = max((v for points in lines.values() for _, v in points if np.isfinite(v)), default=1.0)
        ax.set_ylim(0, top * 1.15 or 1.0)

    rows = tuple((str(p.neurons), words[p.chosen], number(value(p))) for p in sorted(curve, key=lambda p: (p.neurons, p.chosen)))
    label = f"{title} against neurons silenced: {', '.join(f'{v} at {n}' for n, _, v in rows)}."
    return Plot(name, title, draw(name, label, paint), caption, label, ("Neurons", "Chosen", axis), rows)


def _prompts_axis(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=9.5 if len(names) <= 20 else 7.5)
    ax.set_ylim(len(names) - 0.4, -0.6)


def _tall(rows: int) -> float:
    return max(1.6, min(8.5, 0.7 + rows * (0.23 if rows <= 20 else 0.175)))


def _short(layer: str) -> str:
    """The block and attention of a value layer, without what all their names share: "down 0.1", "mid 0.0"."""
    parts = layer.split(".")
    numbers = [part for part in parts if part.isdecimal()]
    block = parts[0].removesuffix("_blocks").removesuffix("_block")
    return f"{block} {'.'.join(numbers)}" if numbers else clipped(layer, 24)


def _range(values: np.ndarray) -> str:
    if not len(values):
        return "none"
    return f"from {number(float(values.min()))} to {number(float(values.max()))}"


def _finite(values: Iterable[float]) -> np.ndarray:
    return np.array([value for value in values if isfinite(value)], dtype=np.float64)
