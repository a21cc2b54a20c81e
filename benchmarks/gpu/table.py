"""The README's table of a GPU, and its figure, from what `benchmarks/gpu/run.py` measured there."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from benchmarks.gpu.plan import COMPILED, ENGINES, TORCH, Case, full_plan

CONTENDERS = ("eager", *TORCH, *COMPILED, *ENGINES)
MODELS = {"sd15": "SD 1.5", "sdxl": "SD XL"}
_COLOURS = {"baked": "#2f6fb3", "masked": "#b3541e"}

Result = dict[str, Any]


class Gpu:
    """The results of one GPU by their names."""

    def __init__(self, found: Result) -> None:
        self.machine = found["machine"]
        self.name: str = self.machine["gpus"][0]["name"]
        self.results: dict[str, Result] = {result["key"]: result for result in found["results"] if "failed" not in result}

    def columns(self) -> list[tuple[str, str, int, int]]:
        """The cases that were measured, by model, type, pictures and latents, in the plan's order."""
        wanted = dict.fromkeys(_column(item) for item in full_plan() if isinstance(item, Case))
        return [column for column in wanted if any(self.row(column, name, "baked") for name in CONTENDERS)]

    def missing(self) -> list[tuple[str, str, int, int]]:
        """Those of the plan that were not."""
        wanted = dict.fromkeys(_column(item) for item in full_plan() if isinstance(item, Case))
        return [column for column in wanted if column not in self.columns()]

    def row(self, column: tuple[str, str, int, int], contender: str, variant: str) -> Result | None:
        """What a contender took, of whichever group of the plan it was timed in first."""
        for result in self.results.values():
            if "rows" in result and tuple(result[key] for key in ("model", "dtype", "batch", "latents")) == column:
                for row in result["rows"]:
                    if row["contender"] == contender and row.get("variant") == variant and "failed" not in row:
                        found: Result = row
                        return found
        return None

    def limit_ms(self, column: tuple[str, str, int, int]) -> float:
        """The least time that the counted FLOPs and bytes take at the measured rates."""
        model, dtype, batch, latents = column
        need, card = self.results["limits"][Case(model, dtype, batch, latents, ()).key], self.results["card"]
        return float(1e3 * max(need["flops"] / card["flop_per_s"][dtype], need["bytes"] / card["bytes_per_s"]))


def gpu_table(found: Result) -> list[str]:
    """Milliseconds, ratio to eager, share of the limit; then what else was found."""
    gpu = Gpu(found)
    columns = gpu.columns()
    lines = [
        f"A UNet step on an {gpu.name}, its neurons baked: median milliseconds · time relative to eager's in channels_last, with its 95 % "
        "interval · the card's limit as a share of the time.",
        "",
        f"| | {' | '.join(map(_title, columns))} |",
        "|---|" + "---|" * len(columns),
    ]
    lines += [f"| {name} | {' | '.join(_cell(gpu, column, name) for column in columns)} |" for name in CONTENDERS]
    lines.append("| *the limit* | " + " | ".join(f"{gpu.limit_ms(column):.2g}" for column in columns) + " |")
    return [*lines, "", " ".join(_notes(gpu))]


def _cell(gpu: Gpu, column: tuple[str, str, int, int], contender: str) -> str:
    row = gpu.row(column, contender, "baked")
    if row is None:
        return "not measured"
    share = f"{gpu.limit_ms(column) / row['p50_ms']:.0%}"
    ratio = row.get("to_reference")
    relative = f" · {ratio['value']:.2f} ({ratio['low']:.2f}–{ratio['high']:.2f})" if ratio else ""
    return f"{row['p50_ms']:.1f}{relative} · {share}"


def _notes(gpu: Gpu) -> list[str]:
    card, notes = gpu.results["card"], []
    ratios = [
        row["to_baked"]["value"]
        for result in gpu.results.values()
        for row in result.get("rows", [])
        if row["contender"] == "CUDA graph" and row.get("variant", "").startswith("masked")
    ]
    notes.append(
        f"A masked UNet takes {min(ratios):.4f} to {max(ratios):.4f} times as long as the baked one (CUDA graph), whether the mask keeps "
        "all neurons, silences the same ones in every row, or others in each."
    )
    profile = next((result for key, result in gpu.results.items() if key.startswith("profile")), None)
    if profile:
        whole = sum(profile["milliseconds"].values())
        shares = ", ".join(f"{kind} {spent / whole:.0%}" for kind, spent in profile["milliseconds"].items() if spent / whole >= 0.005)
        notes.append(f"The kernels of the slowest eager step ({_title(_column_of(profile['case']))}): {shares}.")
    decisions = gpu.results.get("decisions", {})
    by = decisions.get("by")
    if by:
        score = "" if "score" in decisions else ", with the score of later torchmetrics that was taken for the published one then"
        own = {name: row for name, row in by.items() if name.startswith("cuda")}
        same = ", ".join(f"{row['same_neurons']} of {decisions['prompts']} in {name[5:]}" for name, row in own.items())
        notes.append(
            f"The demo's captions, localized there{score}, have the neurons that they have on the machine's CPU ({same}); in fp32 it takes "
            f"{own['cuda fp32']['localize_s']:.1f} s after {own['cuda fp32']['calibrate_s']:.1f} s of calibration, and on its "
            f"{gpu.machine['cores']} cores {by['cpu fp32']['localize_s']:.1f} s after {by['cpu fp32']['calibrate_s']:.1f} s."
        )
    measured = {column[1] for column in gpu.columns()}
    missing = [f"anything in {dtype}" for dtype in dict.fromkeys(c[1] for c in gpu.missing()) if dtype not in measured]
    missing += [_title(column) for column in gpu.missing() if column[1] in measured]
    if missing:
        notes.append(f"Not measured either: {'; '.join(missing)}.")
    versions, device = gpu.machine["versions"], gpu.machine["gpus"][0]
    notes.append(
        f"Random weights, two rows a picture, 20 warm-ups and 50 runs between CUDA events, the contenders in turns; files were exported on "
        f"other cores meanwhile. The limit is the larger of counted FLOPs over {max(card['flop_per_s'].values()) / 1e12:.0f} TFLOP/s and "
        f"least bytes over {card['bytes_per_s'] / 1e12:.1f} TB/s, both measured. Driver {device['driver']}, PyTorch {versions['torch']} "
        f"(`benchmarks/results/{gpu.name.lower().replace(' ', '-')}.json`)."
    )
    return notes


def draw_gpu(found: Result) -> Any:
    """Latency, time relative to eager's, and the limit's share, a panel each."""
    gpu = Gpu(found)
    columns, names = gpu.columns(), [n for n in CONTENDERS if any(gpu.row(c, n, "baked") for c in gpu.columns())]
    figure, axes = plt.subplots(1, 3, figsize=(11, 1.2 + 0.45 * len(columns) * len(names)), sharey=True)
    places, place = [], 0.0
    for column in columns:
        for name in names:
            for variant, colour in _COLOURS.items():
                row = gpu.row(column, name, variant)
                if row is None:
                    continue
                limit = gpu.limit_ms(column)
                relative = row.get("to_reference", {"value": 1.0})["value"]
                for axis, value in zip(axes, (row["p50_ms"], relative, 100 * limit / row["p50_ms"]), strict=True):
                    axis.barh(place, value, height=0.38, color=colour)
                axes[0].plot([limit, limit], [place - 0.2, place + 0.2], color="#1c1e21", lw=1.5)
                if variant == "baked":
                    places.append((place + 0.2, f"{_title(column)}\n{name}"))
                place += 0.4
            place += 0.25
        place += 0.3
    axes[1].axvline(1, color="#1c1e21", lw=1)
    labels = ("milliseconds (line: the card's limit)", "time relative to eager, channels_last", "the limit as a share of the time, %")
    for axis, label in zip(axes, labels, strict=True):
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_yticks([at for at, _ in places], [text for _, text in places], fontsize=7)
    axes[0].invert_yaxis()
    axes[2].legend([Rectangle((0, 0), 1, 1, color=c) for c in _COLOURS.values()], list(_COLOURS), fontsize=7, frameon=False)
    figure.suptitle(f"UNet step on an {gpu.name}", fontsize=9)
    figure.tight_layout()
    return figure


def _column(case: Case) -> tuple[str, str, int, int]:
    return case.model, case.dtype, case.batch, case.latents


def _column_of(key: str) -> tuple[str, str, int, int]:
    model, dtype, _, batch, _, latents = key.split()[:6]
    return model, dtype, int(batch), int(latents)


def _title(column: tuple[str, str, int, int]) -> str:
    model, dtype, batch, latents = column
    return f"{MODELS[model]} {dtype}, {batch} picture{'s' if batch > 1 else ''} of {8 * latents}²"
