"""The figures of `docs/`, each from one of `benchmarks/results/*.json`; `readme.py` writes them."""

from __future__ import annotations

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_COLOURS = ("#5b626b", "#9aa1a9", "#2f6fb3", "#7fb0de", "#b3541e", "#e2a27c")

Result = dict[str, Any]


def columns_of(groups: list[Result]) -> dict[str, Result]:
    """The cases of all groups by title; groups of the same threads and size are one column, each with its own eager."""
    columns: dict[str, Result] = {}
    for group in groups:
        for case in group["cases"]:
            what = "UNet step" if case["target"] == "unet" else f"pipeline, {case['steps']} steps"
            title = f"{what}, {case['height']} × {case['width']}, {group['threads']} thread{'s' if group['threads'] > 1 else ''}"
            known = columns.setdefault(title, {"timings": [], "ratios": []})
            names = {t["contender"] for t in known["timings"]}
            known["timings"] += [t for t in case["timings"] if t["contender"] not in names]
            known["ratios"] += case["ratios"]
    return columns


def draw_detection(found: Result) -> Any:
    """The ROC of each detector, where few general prompts are taken for memorized."""
    figure, axis = plt.subplots(figsize=(5.2, 3.2))
    for each, colour in zip(found["demo"]["rocs"], (_COLOURS[2], _COLOURS[4], _COLOURS[5]), strict=True):
        axis.step(each["false_positives"], each["true_positives"], where="post", color=colour, label=each["detector"])
    axis.set_xscale("symlog", linthresh=1e-3)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.03)
    axis.set_xlabel("share of the other captions taken for memorized", fontsize=8)
    axis.set_ylabel("share of the memorized captions found", fontsize=8)
    axis.legend(fontsize=7, frameon=False, loc="center left")
    axis.tick_params(labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def draw_localization(found: Result) -> Any:
    """Samples and seconds against the number of candidates, and what an evaluation from each value layer on takes."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    names = (("reference", "official procedure"), ("paper", "mode paper"), ("fast", "mode fast"))
    for axis, what, label in zip(axes, ("samples", "seconds"), ("samples of the UNet", "seconds"), strict=False):
        for colour, (name, title) in zip((_COLOURS[0], _COLOURS[2], _COLOURS[4]), names, strict=True):
            axis.loglog(
                [row["candidates"] for row in found["growth"]],
                [row[name][what] for row in found["growth"]],
                "o-",
                color=colour,
                label=title,
            )
        axis.set_xlabel("candidates, of one caption of the demo", fontsize=8)
        axis.set_ylabel(label, fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    shares = found["full_size"]["share"]
    axes[2].bar(range(1, len(shares) + 1), list(shares.values()), color=_COLOURS[2])
    axes[2].axhline(1, color="#1c1e21", lw=1)
    axes[2].set_xlabel("first value layer that changes, Stable Diffusion 1.5", fontsize=8)
    axes[2].set_ylabel("time relative to the whole UNet", fontsize=8)
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def draw_latency(found: Result) -> Any:
    """Time relative to eager's, a panel for each column of the tables."""
    panels = [(f"{name}: {title}", case) for name in ("demo", "sd15") for title, case in columns_of(found[name]).items()]
    rows = -(-len(panels) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.1 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, case) in zip(axes.flat, panels, strict=False):
        rest = [t["contender"] for t in case["timings"] if t["contender"] != "eager"]
        found_ratios = {r["contender"]: r for r in reversed(case["ratios"]) if r["reference"] == "eager"}  # the first, as in the tables
        for place, name in enumerate(rest):
            r = found_ratios[name]
            spread = [[r["value"] - r["low"]], [r["high"] - r["value"]]]
            axis.barh(place, r["value"], xerr=spread, color=_colour(name), height=0.7, error_kw={"lw": 1})
        axis.axvline(1, color="#1c1e21", lw=1)
        axis.set_yticks(range(len(rest)), [name.replace("onnxruntime", "ONNX Runtime").replace("openvino", "OpenVINO") for name in rest])
        axis.invert_yaxis()
        axis.set_xlim(0, max(1.15, *(r["high"] * 1.05 for r in found_ratios.values())))
        axis.set_title(title, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("time relative to eager PyTorch (line: eager); less is faster", fontsize=8)
    figure.tight_layout()
    return figure


def _colour(contender: str) -> str:
    """One for each runtime, lighter where the engine is masked."""
    first = next(place for place, runtime in enumerate(("eager", "onnxruntime", "openvino")) if contender.startswith(runtime))
    return _COLOURS[2 * first + ("masked" in contender)]


def draw_fidelity(found: Result) -> Any:
    """The error along the trajectory of each engine, and general prompts against the number of neurons silenced."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4))
    kinds = {(row["dtype"], row["opset"]): row for row in found["engines"] if row["variant"] == "baked"}
    for colour, ((dtype, opset), row) in zip(_COLOURS[::2] + _COLOURS[1::2], kinds.items(), strict=False):
        left.semilogy([s["latents"] for s in row["steps"]], "-", color=colour, label=f"{dtype}, opset {opset}")
        left.semilogy([s["forced"] for s in row["steps"]], ":", color=colour)
    left.set_xlabel("step (latents along its own way; dotted: one step alone)", fontsize=8)
    left.set_ylabel("largest error, relative", fontsize=8)
    left.legend(fontsize=7, frameon=False)
    for colour, chosen in (("#2f6fb3", "found"), ("#b3541e", "random")):
        points = [p for p in found["curve"] if p["chosen"] == chosen]
        right.plot([p["neurons"] for p in points], [p["drift"] for p in points], "o-", color=colour, label=f"drift, {chosen} neurons")
        right.plot(
            [p["neurons"] for p in points], [p["diversity"] for p in points], "s--", color=colour, label=f"diversity, {chosen} neurons"
        )
    right.set_xscale("symlog", linthresh=8)
    right.set_xlabel("neurons silenced", fontsize=8)
    right.set_ylabel("1 − SSIM, general prompts", fontsize=8)
    right.legend(fontsize=7, frameon=False)
    for axis in (left, right):
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
