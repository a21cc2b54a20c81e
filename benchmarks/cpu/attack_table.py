"""What attacks bring back, as tables of the README and a figure of `docs/`: from `results/demo.json` and `results/attack.json`."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from nemo_edge.measure.bounds import at_least, at_most

Result = dict[str, Any]

GROUPS = {
    "unmitigated": "training pictures, nothing silenced",
    "memories": "training pictures, memories silenced",
    "never seen": "pictures that the model never saw",
}
_COLOURS = {"unmitigated": "#5b626b", "memories": "#b3541e", "never seen": "#2f6fb3"}


def levels_table(found: Result | None) -> list[str]:
    """What came back of the demo by level, where it was attacked."""
    if found is None:
        return []

    def row(level: Result) -> str:
        returned, of = level["memories"]["returned"], level["memories"]["of"]
        bound = at_least(returned, of) if returned else at_most(0, of)
        name = {"text": "text that can be typed", "embedding": "an optimised embedding"}[level["attack"]]
        return f"| {name} | {_of(level['memories'])} ({bound}) | {_of(level['unmitigated'])} | {_of(level['never_seen'])} |"

    head = [
        "| under attack by | memories that come back | with nothing silenced | pictures that the model never saw |",
        "|---|---|---|---|",
    ]
    return [*head, *map(row, found["levels"]), ""]


def attack_table(found: Result) -> list[str]:
    """The longer attacks: embeddings by steps, embeddings by start, text."""
    return [
        *_curves(found["curves"]),
        *(_ways(found["starts"], "50 steps from") if "starts" in found else []),
        *(_ways(found["search"], f"text, {found['search']['settings']['batches']:,} batches a picture, by") if "search" in found else []),
        *(_size(found["size"]) if "size" in found else []),
    ]


def _curves(found: Result) -> list[str]:
    steps = sorted({rate["steps"] for rate in found["rates"]})
    cells = {(rate["group"], rate["steps"]): f"{_of(rate['count'])} · {rate['distance']:.2f}" for rate in found["rates"]}
    return [
        f"| pictures that come back · their median distance, after | {' | '.join(f'{mark} steps' for mark in steps)} |",
        "|---|" + "---|" * len(steps),
        *(f"| {words} | {' | '.join(cells[group, mark] for mark in steps)} |" for group, words in GROUPS.items()),
        "",
        f"An embedding optimised from an unrelated prompt, drawn from {found['settings']['seeds']} seeds by the engine; a copy is at most "
        f"{found['copy_threshold']:.2f} away. {_where(found)} (`benchmarks/results/attack.json`).",
        "",
    ]


def _ways(found: Result, head: str) -> list[str]:
    """The last figures of each way."""
    ways = list(dict.fromkeys(rate["way"] for rate in found["rates"]))
    last = {(rate["group"], rate["way"]): rate for rate in sorted(found["rates"], key=lambda rate: rate["steps"])}

    def cell(group: str, way: str) -> str:
        rate = last.get((group, way))
        return f"{_of(rate['count'])} · {rate['distance']:.2f}" if rate else "–"

    return [
        f"| {head} | {' | '.join(ways)} |",
        "|---|" + "---|" * len(ways),
        *(f"| {words} | {' | '.join(cell(group, way) for way in ways)} |" for group, words in GROUPS.items()),
        "",
    ]


def _size(found: Result) -> list[str]:
    cost = f"a step of an embedding takes {found['step_s']:.0f} s and a batch of a search for text {found['batch_s']:.0f} s"
    size = f"At the size of Stable Diffusion 1.5, {found['pixels']} × {found['pixels']} pixels in fp32,"
    return [f"{size} {cost}, in {found['peak_mb'] / 1e3:.1f} GB. {_where(found)}."]


def draw_attack(found: Result) -> Any:
    """The share that comes back and the median distance, over the steps of an embedding."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.0))
    curves = found["curves"]
    for group, words in GROUPS.items():
        own = sorted((rate for rate in curves["rates"] if rate["group"] == group), key=lambda rate: rate["steps"])
        steps = [rate["steps"] for rate in own]
        shares = [100 * rate["copies"] / rate["drawn"] for rate in own]
        axes[0].plot(steps, shares, "o-", color=_COLOURS[group], label=words)
        axes[1].plot(steps, [rate["distance"] for rate in own], "o-", color=_COLOURS[group], label=words)
    axes[1].axhline(curves["copy_threshold"], color="#9aa1a9", linestyle="--", linewidth=1)
    axes[1].annotate("copies are below", (steps[-1], curves["copy_threshold"]), fontsize=7, ha="right", va="bottom", color="#5b626b")
    for axis, label in zip(axes, ("copies, % of the pictures drawn", "median distance to the picture attacked"), strict=True):
        axis.set_xlabel("steps of the embedding's optimiser", fontsize=8)
        axis.set_ylabel(label, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=7, frameon=False, loc="center right")
    figure.tight_layout()
    return figure


def _of(count: Result) -> str:
    return f"{count['returned']} of {count['of']}"


def _where(found: Result) -> str:
    took = f"{found['wall_s'] / 60:.0f} minutes" if "wall_s" in found else "Measured"
    with_threads = f" with {found['threads']} thread" + ("s" if found["threads"] > 1 else "") if found.get("threads") else ""
    versions = found["machine"]["versions"]
    return f"{took} on {found['machine']['cores']} cores of {found['machine']['cpu']}{with_threads}, PyTorch {versions['torch']}"
