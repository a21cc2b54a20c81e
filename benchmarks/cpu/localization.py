"""Localization against the official code's procedure: time, samples of the UNet, and whether the neurons are the same.

    python -m benchmarks.cpu.localization

Writes `benchmarks/results/localization.json`: the demo's memorized captions by the plain reference of `tests/reference.py` and by both
modes, in turns, the order reversed every time; the cost against the number of candidates; and at Stable Diffusion 1.5's size with
random weights the seconds of an evaluation from each value layer on, and from these the time of the paper's median prompt.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import CALIBRATED, ROOM, ROOT, general, here, keep, kept, memorized
from nemo_edge import demo
from nemo_edge.localization.calibration import Calibration, calibrate
from nemo_edge.localization.localizer import Localization, Localizer
from nemo_edge.localization.trials import Trial, Trials
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.release.random_weights import write_random

sys.path.insert(0, str(ROOT / "tests"))
reference = import_module("reference")
CANDIDATES = (10, 30, 100, 300, 1000)
"""Wanted; the demo has 704 value neurons in all."""
MEDIAN = {"initial_steps": 6, "candidates": 14, "layers": 7}
"""Medians over 251 results of the official code for Stable Diffusion 1.4."""
ROWS, REPEATS = 2, 3
"""Seeds of the evaluations at full size, and how often each is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="times that every contender localizes all captions")
    parser.add_argument("--only", nargs="*", default=["captions", "growth", "full_size"], choices=["captions", "growth", "full_size"])
    args = parser.parse_args()
    found = {**kept("localization"), **here(), "threads": torch.get_num_threads()}
    checkpoint = open_checkpoint(str(demo.CHECKPOINT))
    texts = general()[:CALIBRATED]
    parts: dict[str, Callable[[], Any]] = {
        "captions": lambda: captions(checkpoint, calibrate(checkpoint, texts, LocalizationSettings()), args.rounds),
        "growth": lambda: list(growth(checkpoint, texts)),
        "full_size": full_size,
    }
    for name in args.only:
        found[name] = parts[name]()
        keep("localization", found)
        print(name, json.dumps(found[name])[:1500], flush=True)


def captions(checkpoint: Checkpoint, calibration: Calibration, rounds: int) -> dict[str, Any]:
    """All memorized captions of the demo, by the reference and by both modes."""
    prompts = [prompt.text for prompt in memorized()]
    assert calibration.threshold is not None
    measured, tau = calibration.statistics, calibration.threshold.value

    def plainly() -> list[Any]:
        return [reference.localize(checkpoint, measured, prompt, tau, 10) for prompt in prompts]

    def by(mode: str) -> list[Localization]:
        settings = LocalizationSettings.model_validate({"mode": mode})
        return Localizer(checkpoint, measured, tau, settings).localize_all(prompts)

    contenders: dict[str, Callable[[], Any]] = {"reference": plainly, "paper": lambda: by("paper"), "fast": lambda: by("fast")}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, Any] = {}
    for turn in range(rounds):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            started = time.perf_counter()
            results[name] = contenders[name]()
            seconds[name].append(time.perf_counter() - started)
    ratios = {n: [a / b for a, b in zip(seconds["reference"], seconds[n], strict=True)] for n in ("paper", "fast")}
    apart = [abs(a.refined_score - b.refined_score) for a, b in zip(results["reference"], results["paper"], strict=True)]
    plain = [NeuronSet.from_lists(measured.layers, found.refined) for found in results["reference"]]
    return {
        "prompts": prompts,
        "seconds": seconds,
        "times_faster": {n: {"median": statistics.median(r), "low": min(r), "high": max(r)} for n, r in ratios.items()},
        "samples": {
            "reference": sum(found.samples for found in results["reference"]),
            **{n: sum(r.samples for r in results[n]) for n in ("paper", "fast")},
        },
        "same_neurons": {n: sum(a == b.refined for a, b in zip(plain, results[n], strict=True)) for n in ("paper", "fast")},
        "score_difference": max(apart),
        "fast": [
            {
                "neurons": len(fast.refined),
                "paper_neurons": len(paper.refined),
                "score": fast.refined_score,
                "paper_score": paper.refined_score,
                "jaccard": fast.refined.jaccard(paper.refined),
                "minimal": minimal(checkpoint, fast, tau),
            }
            for fast, paper in zip(results["fast"], results["paper"], strict=True)
        ],
        "closest": min(r.closest for n in ("paper", "fast") for r in results[n] if r.closest is not None),
    }


def minimal(checkpoint: Checkpoint, found: Localization, tau: float) -> bool:
    """Whether the reference finds the set below its limit, and above it without any one of its neurons."""
    limit = found.initial_score if found.floor else tau
    lists = [list(own) for own in found.refined.indices]
    fewer = [
        [[n for n in own if (i, n) != (layer, neuron)] for i, own in enumerate(lists)]
        for layer, chosen in enumerate(lists)
        for neuron in chosen
    ]

    def score(chosen: list[list[int]]) -> float:
        return float(reference.blocked_score(checkpoint, found.prompt, chosen, 10, list(found.seeds)))

    return score(lists) <= limit and all(score(chosen) >= limit for chosen in fewer)


def growth(checkpoint: Checkpoint, texts: list[str]) -> Iterator[dict[str, Any]]:
    """One caption with more and more candidates: those of the highest activation in each layer, none by θ."""
    base = {"initial_theta": 1e9, "min_theta": 1e9}
    settings = LocalizationSettings.model_validate(base)
    calibration = calibrate(checkpoint, texts, settings)
    assert calibration.threshold is not None
    prompt = memorized()[0].text
    layers = calibration.statistics.layers
    for wanted in CANDIDATES:
        k = max(round(wanted / len(layers)), 1)
        row: dict[str, Any] = {"candidates": sum(min(k, layer.width) for layer in layers)}
        for mode in ("paper", "fast"):
            own = LocalizationSettings.model_validate({**base, "initial_k": k, "mode": mode})
            started = time.perf_counter()
            found = Localizer(checkpoint, calibration.statistics, calibration.threshold.value, own).localize(prompt)
            row[mode] = {
                "seconds": time.perf_counter() - started,
                "samples": found.samples,
                "evaluations": found.evaluations,
                "neurons": len(found.refined),
                "score": found.refined_score,
            }
        started = time.perf_counter()
        tau = calibration.threshold.value
        plain = reference.localize(checkpoint, calibration.statistics, prompt, tau, 10, theta=1e9, k=k, min_theta=1e9)
        taken = time.perf_counter() - started
        row["reference"] = {"seconds": taken, "samples": plain.samples, "neurons": sum(map(len, plain.refined))}
        yield row


def full_size() -> dict[str, Any]:
    """An evaluation at Stable Diffusion 1.5's size from each value layer on, and the time of the median prompt on this machine."""
    ROOM.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOM) as folder:
        write_random("sd15", Path(folder) / "sd15")
        checkpoint = open_checkpoint(str(Path(folder) / "sd15"), parts=("unet", "text_encoder"))
        trials = Trials(checkpoint, LocalizationSettings(samples=ROWS), ROWS, 1 << 40)
        subject = trials.subject(checkpoint.encode(["a photograph of an astronaut riding a horse"]))
        whole: list[float] = []
        parts: list[list[float]] = [[] for _ in trials.layers]
        for turn in range(REPEATS):
            whole.append(timed(trials, Trial(subject, some(trials, 0, 2 * turn)), kept=False))
            for layer, seconds in enumerate(parts):
                seconds.append(timed(trials, Trial(subject, some(trials, layer, 2 * turn + 1))))
    row = statistics.median(whole) / ROWS
    shares = [statistics.median(a / b for a, b in zip(seconds, whole, strict=True)) for seconds in parts]
    evaluations = MEDIAN["initial_steps"] * shares[0] + sum(shares) + MEDIAN["candidates"] * statistics.fmean(shares)
    return {
        "rows": ROWS,
        "seconds_per_row": row,
        "whole_s": whole,
        "from_layer_s": dict(zip([layer.name for layer in trials.layers], parts, strict=True)),
        "share": dict(zip([layer.name for layer in trials.layers], shares, strict=True)),
        "kept_bytes_per_seed": subject.kept.size_bytes // ROWS,
        "median_prompt": {
            **MEDIAN,
            "reference_s": 2 * 10 * row * (MEDIAN["initial_steps"] + MEDIAN["layers"] + MEDIAN["candidates"] + 4),
            "paper_s": 10 * row * (1 + evaluations),
        },
    }


def some(trials: Trials, layer: int, first: int = 0) -> NeuronSet:
    """A neuron of one layer, and none of the others."""
    return NeuronSet.from_lists(trials.layers, [[first] if i == layer else [] for i in range(len(trials.layers))])


def timed(trials: Trials, trial: Trial, kept: bool = True) -> float:
    """Seconds of a trial that goes on from what is kept of nothing silenced, or of the whole UNet."""
    subject = trial.subject
    before = subject.kept, subject.last
    if not kept:
        subject.last = None
    started = time.perf_counter()
    trials.scores([trial])
    seconds = time.perf_counter() - started
    subject.kept, subject.last = before
    return seconds


if __name__ == "__main__":
    main()
