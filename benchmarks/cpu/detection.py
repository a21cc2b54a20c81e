"""Detection as a stream: how well each detector tells the demo's memorized captions from others, and where the time goes.

    python -m benchmarks.cpu.detection

Writes `benchmarks/results/detection.json`: the ROC of each detector on the demo's memorized captions and thousands of general ones that
were not calibrated on; seconds, the share of the UNet's forwards and the memory, early and at the end; and that share at Stable Diffusion
1.5's size with random weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared import CALIBRATED, general, here, keep, kept, memorized
from nemo_edge import demo
from nemo_edge.demo.captions import general_captions
from nemo_edge.localization.calibration import calibrate
from nemo_edge.localization.detection import Detector
from nemo_edge.localization.detectors import rocs_of
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.release.random_weights import write_random

EARLY = 200
"""Prompts after which the memory is looked at for the first time."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=10_000, help="how many, the demo's memorized captions among them")
    parser.add_argument("--only", nargs="*", default=["demo", "full_size"], choices=["demo", "full_size"])
    args = parser.parse_args()
    found = {**kept("detection"), **here(), "threads": torch.get_num_threads()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {"demo": partial(of_the_demo, args.prompts), "full_size": full_size}
    for name in args.only:
        found[name] = parts[name]()
        keep("detection", found)
        print(name, json.dumps(found[name])[:1500], flush=True)


def of_the_demo(count: int) -> dict[str, Any]:
    """The demo's captions: all that are memorized, and general ones."""
    checkpoint = open_checkpoint(str(demo.CHECKPOINT))
    calibrated = general()[:CALIBRATED]
    threshold = calibrate(checkpoint, calibrated, LocalizationSettings()).threshold
    assert threshold is not None
    known = memorized()
    texts = [caption.text for caption in general_captions(count + 100, seed=99) if caption.text not in set(calibrated)]
    prompts = [*(Prompt(text=text, kind="N") for text in texts[: count - len(known)]), *known]
    detector, memory = Detector(checkpoint, threshold.value, LocalizationSettings()), dict[int, float]()
    done = 0

    def look(more: int) -> None:
        nonlocal done
        done += more
        if done in (EARLY, len(prompts)):
            memory[done] = resident_mib()

    with tempfile.TemporaryDirectory() as folder:
        found = detector.detect_all([prompt.text for prompt in prompts], Path(folder) / "detection.jsonl", look)
    return {
        "prompts": len(prompts),
        "rows": detector.rows,
        "seconds": detector.seconds,
        "unet_share": detector.unet_seconds / detector.seconds,
        "memory_mib": memory,
        "threshold": threshold.value,
        "above": {
            "memorized": sum(d.memorized for d in found[-len(known) :]),
            "general": sum(d.memorized for d in found[: -len(known)]),
        },
        "rocs": [each.model_dump(mode="json") for each in rocs_of(prompts, found)],
    }


def full_size() -> dict[str, Any]:
    """One prompt at Stable Diffusion 1.5's size: what its rows take, and how much of that the UNet."""
    with tempfile.TemporaryDirectory() as folder:
        write_random("sd15", Path(folder) / "sd15", "fp16", 0)
        detector = Detector(open_checkpoint(str(Path(folder) / "sd15")), 0.428, LocalizationSettings(samples=2))
        detector.detect_all(["a photo of a pig"])
    return {"rows": detector.rows, "seconds": detector.seconds, "unet_share": detector.unet_seconds / detector.seconds}


def resident_mib() -> float:
    """The memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
