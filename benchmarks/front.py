"""The README's own lines in figures: what the demo comes to, what a build takes, and three results. From several results at once."""

from __future__ import annotations

__all__ = ["figures", "headline", "takes"]

from typing import Any

from benchmarks.cpu.figures import columns_of
from benchmarks.shared import machine_of
from nemo_edge.measure.bounds import at_most

Result = dict[str, Any]
_ENGINES = {"openvino fp32": "OpenVINO", "openvino bf16": "OpenVINO in bf16", "onnxruntime": "ONNX Runtime"}
_CASE = "UNet step, 256 × 256, 2 threads"


def headline(demo: Result, repeated: Result) -> list[str]:
    """What the demo gives back before and after, and under attack, and what becomes of the second one."""
    baked = demo["variants"]["baked"]
    drawn, before, after = len(baked["copies_after"]) * baked["seeds"], sum(baked["copies_before"]), sum(baked["copies_after"])
    bound = at_most(max(baked["copies_after"]), baked["seeds"])
    attacks = {level["attack"]: level["memories"] for level in demo["attack"]["levels"]}
    text, embedding = (f"{attacks[name]['returned']} of {attacks[name]['of']}" for name in ("text", "embedding"))
    captions, seeds = len(baked["copies_after"]), baked["seeds"]
    return [
        f"*The demo, a small model of 64 × 64 pixels: {captions} memorized captions, {seeds} pictures each. Before, {before} of {drawn} "
        f"were copies of training pictures; after, {after} ({bound} of a caption's pictures, with 95 % confidence). Text that can be typed "
        f"brings {text} attacked memories back, **an optimised embedding {embedding}**. {_second(repeated, baked['general_drift'])} "
        "[Both](docs/attack.md#what-came-back-of-two-models)*"
    ]


def _second(repeated: Result, first_drift: float) -> str:
    """The same of the second demo, with its price."""
    baked = repeated["variants"]["baked"]
    drawn, before, after = len(baked["copies_after"]) * baked["seeds"], sum(baked["copies_before"]), sum(baked["copies_after"])
    verdict = "" if all(gate["passed"] for gate in repeated["gates"]) else "; its gates fail, and `build` says so"
    return (
        f"A second model, whose memories nobody prepared: {before} of {drawn} before, {after} after, and other pictures change by "
        f"{baked['general_drift']:.2f} (1 − SSIM) instead of {first_drift:.3f}{verdict}."
    )


def takes(demo: Result, full_size: Result, localization: Result, standalone: Result) -> list[str]:
    """Time, memory and disk of the demo and of models of full size."""
    minutes = localization["full_size"]["median_prompt"]["paper_s"] / 60
    site = next(row["size_mb"] for row in standalone["environments"] if row["extra"] == "build") / 1e3
    names = {"sd15": "Stable Diffusion 1.5", "sdxl": "Stable Diffusion XL"}

    def row(name: str) -> str:
        build = full_size["builds"][name]
        sizes = f"{build['build']['peak_mb'] / 1e3:.1f} GB | {build['bundle_bytes'] / 1e9:.1f} GB"
        return f"| {names[name]}, fp16, engines for two GPUs | {build['build']['seconds']:.0f} s | {sizes} |"

    return [
        "| on two CPU cores | time | memory | disk |",
        "|---|---|---|---|",
        f"| `.[build]` | | | {site:.1f} GB |",
        f"| the demo, all of it | {demo['wall_s'] / 60:.0f} min | {demo['peak_memory_gib']:.1f} GiB | |",
        *map(row, names),
        "",
        "The demo's time is without the installation. Those at full size are of export and compilation alone, with random weights: "
        f"finding a prompt's neurons takes {minutes:.0f} minutes for a median one of Stable Diffusion 1.5 on such cores, and calibrating "
        'and drawing take hours. Use a GPU (`device = "cuda"`), or begin with `limit = 3` and few seeds and steps. `--dry-run` estimates '
        "memory and disk.",
    ]


def figures(demo: Result, latency: Result, standalone: Result) -> list[str]:
    """Three results with the pages that have them whole."""
    case = columns_of(latency["sd15"])[_CASE]
    ratios = {r["contender"]: r for r in case["ratios"] if r["reference"] == "eager" and r["contender"].endswith(", baked")}
    best = min(ratios.values(), key=lambda r: r["value"])
    least = min(standalone["environments"], key=lambda row: row["size_mb"])
    interval, machine = f"{best['low']:.2f} to {best['high']:.2f}", machine_of(latency["sd15"][0])
    engine = _ENGINES.get(best["contender"].partition(",")[0], best["contender"])
    return [
        f"- A step of a UNet of Stable Diffusion 1.5's size at 256 × 256 takes {best['value']:.2f} ({interval}) of eager PyTorch's time in "
        f"{engine}, on {machine}. [All times](docs/benchmarks.md#times-on-a-cpu)",
        f"- Other prompts' pictures change by {demo['variants']['baked']['general_drift']:.3f} (1 − SSIM) in the demo. "
        "[The demo](docs/benchmarks.md#the-demo)",
        f"- A finished bundle draws without PyTorch, from {least['size_mb']} MB of packages. "
        "[Without PyTorch](docs/benchmarks.md#without-pytorch)",
    ]
