"""What a round of hardening takes at the size of Stable Diffusion 1.5: random weights, 256 × 256 pixels, the cross-attention alone.

    python -m benchmarks.cpu.hardening_full_size

A quarter of an hour. Writes the part `full size` of `benchmarks/results/hardening.json`. One round is what `nemo-edge harden` takes for two
rounds, less what it takes for one.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.cpu.attack import WEIGHTS
from benchmarks.cpu.full_size import watched
from benchmarks.shared import ROOM, here, keep, kept

PIXELS = 256
NEURONS = """
import sys
from pathlib import Path
from nemo_edge.model.checkpoint import open_checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
NeuronSet.empty(value_layers(open_checkpoint(sys.argv[1]).unet)).others(16, seed=0).save(Path(sys.argv[2]))
"""
RECIPE = """
name = "size"
output = "unused"
[checkpoint]
path = "unused"
[prompts]
memorized = "memorized.csv"
general = "general.txt"
[sampling]
steps = 1
height = {pixels}
width = {pixels}
"""


def main() -> None:
    weights = ROOM / "attack" / "sd15"
    watched([sys.executable, "-c", WEIGHTS, str(weights)])
    with tempfile.TemporaryDirectory(dir=ROOM) as name:
        folder = Path(name)
        write_inputs(folder)
        watched([sys.executable, "-c", NEURONS, str(weights), str(folder / "neurons.json")])
        one, two = (hardened(weights, folder, rounds) for rounds in (1, 2))
    round_s = round(two["seconds"] - one["seconds"], 1)
    found = {
        **here(),
        "pixels": PIXELS,
        "weights": "cross-attention",
        "round_s": round_s,
        "peak_mb": two["peak_mb"],
        "settings": two["settings"],
    }
    keep("hardening", {**kept("hardening"), "full size": found})
    print(found)


def write_inputs(folder: Path) -> None:
    """One memorized prompt with a picture, one other prompt, and how pictures are drawn."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (PIXELS, PIXELS, 3), np.uint8)).save(folder / "a.png")
    (folder / "memorized.csv").write_text("Caption;image\na red pig;a.png\n")
    (folder / "general.txt").write_text("a blue whale\n")
    (folder / "recipe.toml").write_text(RECIPE.format(pixels=PIXELS))


def hardened(weights: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds and memory of so many rounds, and the settings they were gone with."""
    output = folder / "out"
    files = {
        name: str(folder / file) for name, file in (("neurons", "neurons.json"), ("prompts", "memorized.csv"), ("general", "general.txt"))
    }
    options = [part for name, file in {**files, "recipe": str(folder / "recipe.toml")}.items() for part in (f"--{name}", file)]
    command = [sys.executable, "-m", "nemo_edge.cli", "harden", str(weights), *options, "--weights", "cross-attention", "-o", str(output)]
    found = watched([*command, "--rounds", str(rounds)])
    settings = json.loads((output / "hardening.json").read_text())["settings"]
    shutil.rmtree(output)
    return {"seconds": found["seconds"], "peak_mb": found["peak_mb"], "settings": settings}


if __name__ == "__main__":
    main()
