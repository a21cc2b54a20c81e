"""The plots of the report about groups of prompts: whose neurons a group's set holds, and what variants of the prompts bring back.

Each function returns the plots that the evidence has values for.
"""

from __future__ import annotations

__all__ = ["group_plots", "variant_plots"]

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from nemo_edge.localization.groups import Group, Variant
from nemo_edge.report._canvas import INK, LIMIT, SERIES, Plot, draw
from nemo_edge.report._numbers import clipped, count, number
from nemo_edge.report.evidence import Evidence

_SHOWN = 40
"""Prompts, and groups, that one plot has room for."""


def group_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """The heat map of each prompt's own neurons in the groups' sets, where a group has more than one prompt of the list."""
    if all(len(_listed(group)) < 2 for group in evidence.groups):
        return ()
    groups = sorted(evidence.groups, key=lambda group: -len(_listed(group)))[:_SHOWN]
    own = {result.prompt: result.refined for result in evidence.localizations}
    prompts = [prompt for group in groups for prompt in _listed(group)][:_SHOWN]
    names = [f"{clipped(prompt, 30)} · {list(own).index(prompt) + 1}" for prompt in prompts]
    overlap = np.array([[own[prompt].jaccard(group.neurons) for group in groups] for prompt in prompts])

    def paint(axes: Sequence[Axes]) -> None:
        (ax,) = axes
        for row, column in zip(*np.nonzero(overlap), strict=True):
            alpha = 0.15 + 0.85 * float(overlap[row, column])
            ax.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, facecolor=SERIES[0], alpha=alpha, linewidth=0))
            if len(groups) <= 8:
                ax.text(column, row, number(float(overlap[row, column]), 2), ha="center", va="center", color=INK, fontsize=8.5)
        ax.set_yticks(range(len(prompts)), names, fontsize=9.5 if len(names) <= 20 else 7.5)
        ax.set_ylim(len(prompts) - 0.4, -0.6)
        ax.set_xlim(-0.6, len(groups) - 0.4)
        ax.set_xticks(range(len(groups)), [clipped(g.name, 16) for g in groups], fontsize=8, rotation=0 if len(groups) <= 4 else 90)
        ax.grid(visible=False)

    rows = tuple((g.name, str(len(_listed(g))), str(len(g.neurons)), *_extremes([m.overlap for m in g.members])) for g in groups)
    label = f"Heat map of {count(len(prompts), 'prompt')} against {count(len(groups), 'group')}: how much of each set the other holds."
    left_out = sum(len(_listed(g)) for g in evidence.groups) - len(prompts)
    caption = "Jaccard index of a prompt's own neurons and a group's set, which was put together from its prompts' and refined together" + (
        f"; {count(left_out, 'prompt')} left out." if left_out else "."
    )
    svg = draw("groups", label, paint, height=max(1.8, min(8.5, 0.9 + len(prompts) * (0.23 if len(prompts) <= 20 else 0.175))))
    header = ("Group", "Prompts", "Neurons", "Lowest overlap", "Highest overlap")
    return (Plot("groups", "Neurons of groups", svg, caption, label, header, rows),)


def variant_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """What is left of the memories that variants of the prompts lead to, before and after the worst of them joined."""
    variants = [v for group in evidence.groups for v in group.memorized]
    if not variants:
        return ()
    before, after = (np.array([getattr(v, which) for v in variants], dtype=np.float64) for which in ("before", "after"))
    threshold = evidence.measurement.threshold

    def paint(axes: Sequence[Axes]) -> None:
        bins = np.linspace(0, max(1.0, *before, *after), 41).tolist()
        for ax, values, title, colour in zip(axes, (before, after), ("Before", "After"), (SERIES[2], SERIES[1]), strict=True):
            ax.hist(values, bins, color=colour)
            ax.set_title(title)
            ax.axvline(threshold, color=LIMIT, linestyle="--", linewidth=1.4)
            ax.set_ylabel("variants")
            ax.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes[0].text(threshold, 0.97, " τ ", transform=axes[0].get_xaxis_transform(), va="top", color=LIMIT)
        axes[1].set_xlabel("memorization score that is left")

    leaks = [int((values > threshold).sum()) for values in (before, after)]
    label = f"Histograms of the score left of {count(len(variants), 'variant')}: above τ {leaks[0]} before and {leaks[1]} after."
    caption = (
        "Variants that the unmitigated model has memorized too. Before: with the neurons found for the list's prompts alone; after: with "
        "those of the variants that brought a memory back."
    )
    rows = tuple(_row(v) for v in sorted(variants, key=lambda v: -(v.before or 0.0))[:_SHOWN])
    svg = draw("variants", label, paint, height=3.4, panels=2)
    return (Plot("variants", "Small changes of words", svg, caption, label, ("Variant", "Of", "Before", "After"), rows),)


def _listed(group: Group) -> list[str]:
    return [member.prompt for member in group.members if not member.variant]


def _extremes(values: Sequence[float]) -> tuple[str, str]:
    return number(min(values), 2), number(max(values), 2)


def _row(variant: Variant) -> tuple[str, ...]:
    return clipped(variant.text, 60), clipped(variant.prompt, 40), number(variant.before), number(variant.after)
