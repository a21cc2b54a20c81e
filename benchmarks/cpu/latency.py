"""Times eager PyTorch, ONNX Runtime and OpenVINO side by side: the demo, and a UNet of Stable Diffusion 1.5's size with random weights.

    python -m benchmarks.cpu.latency [--only demo|sd15] [--sizes 256 512] [--threads 1 2] [--work FOLDER]

Contenders: eager, eager in bf16, eager with channels_last; ONNX Runtime at opset 23, of the demo at 18 too, and OpenVINO at 23 in fp32 and
bf16, baked and masked; with one thread and with all cores. At full size masked engines and channels_last are timed at 256 × 256 only.
Writes `benchmarks/results/latency.json`, and keeps there what it was not asked for. The full size takes an hour, 20 GB of disk and 20 GB of
memory; nothing else should run beside it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.cpu.models import DEMO, engines_of, save_sd15
from benchmarks.shared import keep, kept
from nemo_edge.cli.console import Bars
from nemo_edge.measure._contender import Runnable
from nemo_edge.measure.bench import bench, unfit
from nemo_edge.measure.latency import Latency
from nemo_edge.recipe.settings import LatencySettings, SamplingSettings
from nemo_edge.recipe.targets import EngineSettings, Rival
from nemo_edge.system.environment import machine

OPSETS = (18, 23)
BESIDE: tuple[Rival, ...] = ("eager bf16", "openvino bf16")
"""What is left out, and told, where the CPU has no instructions for it."""
FULL_SIZES = {256: 10, 512: 5}
"""Pixels of pictures of the full size, and least calls of each contender; one of 512 takes five times as long."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("demo", "sd15"), help="time one of the two, and keep the other's results")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(FULL_SIZES), help="pixels, of pictures of the full size")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, machine().cores}))
    parser.add_argument("--work", type=Path, help="where the exported files go; a temporary folder otherwise")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        if arguments.only in (None, "demo"):
            keep_groups("demo", time_demo(work / "demo", arguments.threads))
        if arguments.only in (None, "sd15"):
            keep_groups("sd15", time_sd15(work / "sd15", arguments.threads, arguments.sizes))


def keep_groups(name: str, groups: Iterable[dict[str, Any]]) -> None:
    """Write each group as it is measured, in the place of the former one of its name, by size and threads."""
    for found in groups:
        former = {group["group"]: group for group in kept("latency").get(name, [])}
        every = sorted({**former, found["group"]: found}.values(), key=lambda group: (group["cases"][0]["height"], group["threads"]))
        keep("latency", {**kept("latency"), name: every})


def time_demo(work: Path, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Every target of the demo, as the demo's recipe samples."""
    bundles = {opset: engines_of(str(DEMO), work / f"opset{opset}", opset) for opset in OPSETS}
    sampling = SamplingSettings(scheduler="dpmsolver++", steps=10, guidance=4.0)
    settings = LatencySettings(targets=("unet", "pipeline"), beside=BESIDE)
    for threads in counts:
        those = [*eagers(str(DEMO), threads), *(each for opset, bundle in bundles.items() for each in engines(bundle, opset, threads))]
        yield group(f"{threads} threads", those, sampling, settings)


def time_sd15(work: Path, counts: Sequence[int], sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The UNet at full size."""
    checkpoint, opset = save_sd15(work / "checkpoint"), OPSETS[-1]
    bundle = engines_of(str(checkpoint), work / f"opset{opset}", opset)
    for size, threads in product(sizes, counts):
        sampling = SamplingSettings(height=size, width=size)
        settings = LatencySettings(targets=("unet",), runs=FULL_SIZES.get(size, 5), warmup_s=15.0, beside=BESIDE)
        *plain, channels_last = eagers(str(checkpoint), threads)
        small = size == min(FULL_SIZES)
        parts = {"eager": [channels_last]} if small else {}
        for each in engines(bundle, opset, threads):
            if small or each.variant == "baked":
                parts.setdefault(each.name.rpartition(", ")[0], []).append(each)
        for name, those in parts.items():  # not all at once: memory
            yield group(f"{threads} threads, {size} × {size}, {name}", [*plain, *those], sampling, settings)


def eagers(checkpoint: str, threads: int) -> list[Runnable]:
    size, engine = sum(p.stat().st_size for p in Path(checkpoint).rglob("*.safetensors")) / 2**20, EngineSettings(threads=threads)
    narrow = [] if unfit("eager bf16", engine) else [Runnable("eager bf16", "eager", checkpoint, engine, "bf16", weights_mib=size / 2)]
    channels_last = Runnable("eager, channels_last", "eager", checkpoint, engine, weights_mib=size, channels_last=True)
    return [Runnable("eager", "eager", checkpoint, engine, weights_mib=size), *narrow, channels_last]


def engines(bundle: Path, opset: int, threads: int) -> Iterator[Runnable]:
    size = sum(p.stat().st_size for p in bundle.glob("unet/*")) / 2**20
    runtimes = {f"onnxruntime, opset {opset}": EngineSettings(threads=threads)}
    if opset == OPSETS[-1]:
        for precision in ("fp32", "bf16"):
            engine = EngineSettings.model_validate({"backend": "openvino", "precision": precision, "threads": threads})
            runtimes |= {f"openvino {precision}": engine} if not unfit(f"openvino {precision}", engine) else {}
    for name, engine in runtimes.items():
        for variant in ("baked", "masked"):
            yield Runnable(f"{name}, {variant}", "engine", str(bundle), engine, engine.precision, weights_mib=size, variant=variant)


def group(name: str, those: Sequence[Runnable], sampling: SamplingSettings, settings: LatencySettings) -> dict[str, Any]:
    print(name, flush=True)
    found = bench(those, sampling, settings, Bars())
    return {"group": name, "threads": those[0].engine.threads, **json.loads(slim(found).model_dump_json())}


def slim(found: Latency) -> Latency:
    """Without the single samples, which are many for what is quick."""
    cases = tuple(c.model_copy(update={"timings": tuple(t.model_copy(update={"samples_ms": ()}) for t in c.timings)}) for c in found.cases)
    return found.model_copy(update={"cases": cases})


if __name__ == "__main__":
    main()
