"""Times of engines beside eager's, as tables of the README: from `results/latency.json` and `results/few_steps.json`."""

from __future__ import annotations

__all__ = ["few_steps_table", "latency_table"]

from typing import Any

from benchmarks.cpu.figures import columns_of
from benchmarks.shared import machine_of

Result = dict[str, Any]
_TARGETS = {"text_encoder": "text encoder", "unet": "UNet, one step", "vae_decoder": "VAE decoder"}


def latency_table(found: Result) -> list[str]:
    """The demo and one step at full size, every contender a row."""
    lines = []
    for name, title in (("demo", "The demo"), ("sd15", "A UNet of Stable Diffusion 1.5's size (859.5 M parameters, random weights)")):
        columns = columns_of(found[name])
        contenders = list(dict.fromkeys(t["contender"] for case in columns.values() for t in case["timings"]))
        lines += [f"{title}: milliseconds, and the time relative to eager's with its 95 % interval.", ""]
        lines += [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
        lines += [f"| {c} | " + " | ".join(_cell(case, c, "eager") for case in columns.values()) + " |" for c in contenders]
        pairs = {
            f"{c.removesuffix(', masked')}: masked relative to baked": (c, c.replace("masked", "baked"))
            for c in contenders
            if "masked" in c
        }
        if "eager bf16" in contenders:
            pairs |= {f"{c} relative to eager bf16": (c, "eager bf16") for c in contenders if c.endswith(", baked")}
        for title_of, (one, other) in pairs.items():
            lines.append(f"| *{title_of}* | " + " | ".join(_ratio(case, one, other) for case in columns.values()) + " |")
        lines.append("")
    machines = dict.fromkeys(machine_of(groups[0]) for groups in found.values())
    overhead = max(t["overhead"] for groups in found.values() for g in groups for c in g["cases"] for t in c["timings"])
    left_out = {name: why for groups in found.values() for g in groups for name, why in g.get("left_out", {}).items()}
    absent = f"Not timed: {', '.join(left_out)}, since {next(iter(left_out.values()))}. " if left_out else ""
    noisy = sum(t["noisy"] for groups in found.values() for g in groups for c in g["cases"] for t in c["timings"])
    every = sum(len(c["timings"]) for groups in found.values() for g in groups for c in g["cases"])
    return [
        *lines,
        f"Measured on {' and on '.join(machines)}, fp32 but where bf16 is said, one picture with guidance (two UNet rows), in turns, "
        f"each in a process of its own. {absent}{noisy} of {every} timings varied by more than 10 %. The measuring itself took at most "
        f"{overhead:.2%} of what it measured (`benchmarks/results/latency.json`).",
    ]


def _cell(case: Result, contender: str, reference: str) -> str:
    timing = next((t for t in case["timings"] if t["contender"] == contender), None)
    if timing is None:
        return "–"
    shown = f"{timing['p50_ms']:,.0f}" if timing["p50_ms"] >= 100 else f"{timing['p50_ms']:.1f}"
    return shown if contender == reference else f"{shown} · {_ratio(case, contender, reference)}"


def _ratio(case: Result, contender: str, reference: str) -> str:
    found = next((r for r in case["ratios"] if (r["contender"], r["reference"]) == (contender, reference)), None)
    return f"{found['value']:.3f} ({found['low']:.3f}–{found['high']:.3f})" if found else "–"


def few_steps_table(found: Result) -> list[str]:
    """Each component and whole pictures of few steps; a contender of several groups is shown as the first timed it."""
    cells: dict[str, dict[str, str]] = {}
    for group in found["groups"]:
        for case in group["cases"]:
            column = _TARGETS.get(case["target"]) or f"picture, {group['steps']} step{'s' * (group['steps'] > 1)}"
            for timing in case["timings"]:
                name = timing["contender"]
                cells.setdefault(name, {}).setdefault(column, _cell(case, name, "eager"))
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    timings = [timing for group in found["groups"] for case in group["cases"] for timing in case["timings"]]
    size = found["groups"][0]["cases"][0]
    return [
        f"| | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
        *(f"| {name} | " + " | ".join(row.get(column, "–") for column in columns) + " |" for name, row in cells.items()),
        "",
        f"Stable Diffusion 1.5's size, random weights, one picture of {size['height']} × {size['width']} without guidance (one row of the "
        f"UNet), {found['threads']} threads: milliseconds, and the time relative to eager's of the same group with its 95 % interval. "
        f"{sum(t['noisy'] for t in timings)} of {len(timings)} timings varied by more than 10 %. Measured on "
        f"{machine_of(found['groups'][0])} (`benchmarks/results/few_steps.json`).",
    ]
