"""What quantized engines give back, as a table: from `results/quantization.json`."""

from __future__ import annotations

__all__ = ["quantization_table"]

from typing import Any

from benchmarks.shared import machine_of
from nemo_edge.measure.bounds import at_most

Result = dict[str, Any]
_NAMES = {
    "fp32": "fp32",
    "fp16": "fp16",
    "bf16": "bf16 (OpenVINO)",
    "int8": "int8",
    "int8_weights": "int8 weights",
    "int4_weights": "int4 weights",
}
_TITLES = {"demo": "The demo", "repeated": "The second demo, whose memories come of repetition alone"}


def quantization_table(found: Result) -> list[str]:
    """A table for each demo: a type a row."""
    lines: list[str] = []
    for name, rows in found["demos"].items():
        variants = list(next(iter(rows.values()))["variants"])
        heads = [
            "copies, unmitigated",
            *(f"{title}, {v}" for v in variants for title in ("copies", "highest score")),
            "drift, memories out",
        ]
        lines += [f"{_TITLES[name]}:", "", f"| | {' | '.join(heads)} | changed from fp32 | UNet, MB |", "|---|" + "---|" * (len(heads) + 2)]
        lines += [_row(_NAMES[kind], row, variants) for kind, row in rows.items()]
        lines.append("")
    return [
        *lines,
        "Copies among the pictures of prompts with a training picture, drawn by the engine of that type, ten seeds a prompt; the highest "
        "memorization score left on a prompt; drift: how much the neurons' silence changes ordinary prompts' pictures in that engine (mean "
        "1 − SSIM); changed from fp32: how much the type itself changes them. "
        f"Measured on {machine_of(found)} (`benchmarks/results/quantization.json`).",
    ]


def _row(name: str, row: Result, variants: list[str]) -> str:
    first = row["variants"][variants[0]]
    cells = [_copies(first["copies_before"], first["seeds"])]
    for variant in variants:
        own = row["variants"][variant]
        cells += [_copies(own["copies_after"], own["seeds"]), f"{max(own['score_after']):.2f} (τ {row['threshold']:.2f})"]
    changed = row["baked_from_fp32"]
    drift = "" if name == "fp32" else f"{sum(changed) / len(changed):.3f}"
    return f"| {name} | {' | '.join(cells)} | {first['general_drift']:.3f} | {drift} | {row['unet_bytes'] / 1e6:.1f} |"


def _copies(counts: list[int | None], seeds: int) -> str:
    known = [count for count in counts if count is not None]
    bound = f" ({at_most(max(known), seeds)} of a prompt's)" if known and max(known) < seeds else ""
    return f"{sum(known)} of {len(known) * seeds}{bound}"
