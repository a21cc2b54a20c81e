"""Runs a demo's build and records it: `benchmarks/results/demo.json` or `repeated.json`, and its picture in the docs.

    python -m benchmarks.cpu.demo [--demo repeated] [--bundle engines/out/demo] [--work FOLDER]

Builds the demo's recipe into a fresh folder, with its wall time and its peak memory; with `--bundle` a finished bundle is read instead and
time and memory are not measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from benchmarks.shared import DEMOS, ROOT, keep
from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.demo.captions import MEMORIZED, Caption
from nemo_edge.demo.sinks import memory_sinks
from nemo_edge.localization.localizer import read_results
from nemo_edge.measure.mitigation import Measurement

FIRST = ROOT / "docs" / "first.png"
FIRST_OF = "demo"
"""The demo that the README shows."""
SHOWN = (0, 1)
"""Which memorized and which general prompt the README's picture shows."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", choices=DEMOS, default="demo")
    parser.add_argument("--bundle", type=Path, help="a finished bundle of it, with its .build folder beside it")
    parser.add_argument("--work", type=Path, help="where the demo is built; a temporary folder otherwise")
    arguments = parser.parse_args()
    name, bundle = arguments.demo, arguments.bundle
    if bundle is not None:
        record(name, bundle, {})
        return
    with tempfile.TemporaryDirectory() as folder:
        bundle, cost = timed_build(name, arguments.work or Path(folder))
        record(name, bundle, cost)


def timed_build(name: str, folder: Path) -> tuple[Path, dict[str, float]]:
    """Build a demo into `folder` as a user would, in a process of its own."""
    (folder := folder.resolve()).mkdir(parents=True, exist_ok=True)  # the recipe's paths are relative to its own
    recipe = DEMOS[name].read_text().replace('"../', f'"{ROOT}/').replace(f'"out/{name}"', f'"{folder}/{name}"')
    (folder / f"{name}.toml").write_text(recipe)
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "nemo_edge.cli", "build", str(folder / f"{name}.toml")], check=False)
    if done.returncode not in (0, 3):  # 3: a gate failed, which is a result too
        done.check_returncode()
    peak_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return folder / name, {"wall_s": round(time.monotonic() - started, 1), "peak_memory_gib": round(peak_kib / 2**20, 2)}


def record(name: str, bundle: Path, cost: dict[str, float]) -> None:
    """Write the JSON and the figure from a bundle."""
    manifest = open_bundle(bundle)
    measurement = Measurement.read(bundle)
    report = json.loads((bundle / "report" / "report.json").read_text())
    result = {
        "machine": manifest.machine.model_dump(mode="json"),
        **cost,
        "threshold": measurement.threshold,
        "copy_threshold": measurement.copy_threshold,
        "neurons": measurement.neurons,
        "gates": [g.model_dump(mode="json") for g in manifest.gates],
        "prompts": [r["prompt"] for r in report["localizations"]],
        "per_prompt_neurons": [r["refined"] for r in report["localizations"]],
        "evaluations": [r["evaluations"] for r in report["localizations"]],
        **(planted(bundle) if name == "demo" else {}),
        "variants": {v.variant: summary(v, measurement.threshold) for v in measurement.variants},
        "attack": report["attack"],
        "untouched_error": measurement.untouched.largest_error if measurement.untouched else None,
        "mask_of_ones": measurement.mask_of_ones,
    }
    keep(name, result)
    pictures = max((bundle.parent / f".{bundle.name}.build").glob("measure-*/pictures"), key=lambda p: p.stat().st_mtime)
    draw(result, pictures, ROOT / "docs" / f"{name}.png")
    if name == FIRST_OF:
        draw_first(result["prompts"][SHOWN[0]], measurement.general_prompts[SHOWN[1]], next(iter(result["variants"])), pictures)


def planted(bundle: Path) -> dict[str, list[int]]:
    """How many of the neurons found for each caption are among those that its memory was trained into."""
    found = {result.prompt: result for result in read_results(bundle / "localization.jsonl")}

    def places(caption: Caption) -> set[tuple[int, int]]:
        return {(layer, neuron) for layer, neurons in enumerate(found[caption.text].refined.indices) for neuron in neurons}

    return {"per_prompt_planted": [len(places(caption) & set(sinks)) for caption, sinks in zip(MEMORIZED, memory_sinks(), strict=True)]}


def summary(variant: Any, threshold: float) -> dict[str, Any]:
    verbatim = [m for m in variant.mitigations if m.kind == "VM"]
    every = variant.mitigations
    return {
        "score_before": [m.score_before for m in every],
        "score_after": [m.score_after for m in every],
        "below_threshold": sum(m.score_after <= threshold for m in every),
        "verbatim": len(verbatim),
        "seeds": verbatim[0].seeds,
        "copies_before": [m.before.copies for m in verbatim],
        "copies_after": [m.after.copies for m in verbatim],
        "copies_random": [m.random.copies for m in verbatim],
        "others_after": [m.after.others for m in verbatim],
        "general_drift": variant.general.mean,
        "general_drift_largest": variant.general.largest,
        "latent_drift": variant.general.latents,
        "diversity": [variant.general.diversity_before, variant.general.diversity_after],
        "agreement": max(m.agreement_error for m in every),
        "engine_error": variant.trajectory.largest_error,
        "picture_levels": variant.trajectory.picture_levels,
    }


def draw(result: dict[str, Any], pictures: Path, place: Path) -> None:
    """Training picture, before, after, random control for six memorized prompts; before and after for six general ones."""
    variant = next(iter(result["variants"]))
    columns = ["training", "before", "", "", f"after ({variant})", "", "", "random control", "", ""]
    figure, axes = plt.subplots(6, 14, figsize=(14, 6.6))
    for row in range(6):
        index = row * 2
        folder = pictures / f"{index:03d}"
        names = ["training.png", *(f"{which}-{seed:02d}.png" for which in ("before", variant, "random") for seed in range(3))]
        shown = [folder / name for name in names]
        general = [pictures / "general" / f"{row * 2 + i:03d}-{which}-00.png" for i in range(2) for which in ("before", variant)]
        for axis, path in zip(axes[row], [*shown, *general], strict=True):
            axis.imshow(Image.open(path))
            axis.set_axis_off()
    for axis, title in zip(axes[0], [*columns, "general: before", "after", "before", "after"], strict=True):
        axis.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(place, dpi=110)


def draw_first(memorized: str, general: str, variant: str, pictures: Path) -> None:
    """The README's picture: a training picture, what its caption gives before and after, and the same of an ordinary caption."""
    own, others = pictures / f"{SHOWN[0]:03d}", pictures / "general"
    tiles = [
        ("training picture", own / "training.png"),
        ("drawn before", own / "before-00.png"),
        ("after", own / f"{variant}-00.png"),
        ("drawn before", others / f"{SHOWN[1]:03d}-before-00.png"),
        ("after", others / f"{SHOWN[1]:03d}-{variant}-00.png"),
    ]
    figure = plt.figure(figsize=(14.4, 3.3), dpi=100)
    for column, (title, path) in enumerate(tiles):
        axis = figure.add_axes((0.004 + column * 0.19 + (0.05 if column > 2 else 0), 0.02, 0.182, 0.795))
        axis.imshow(Image.open(path), interpolation="bicubic")
        axis.set_axis_off()
        axis.set_title(title, fontsize=12, pad=4)
    for x, text in ((0.285, f'a memorized caption: "{memorized}"'), (0.81, f'an ordinary one: "{general}"')):
        figure.text(x, 0.945, text, ha="center", fontsize=13, weight="bold")
    figure.savefig(FIRST)


if __name__ == "__main__":
    main()
