"""Attacks on the demo, longer than its build makes them, and what one takes at the size of Stable Diffusion 1.5: `results/attack.json`.

    python -m benchmarks.cpu.attack [curves starts search size] [--bundle engines/out/demo] [--limit 12]

`curves`: an embedding optimised over 150 steps from an unrelated prompt, towards the training pictures with their memories silenced,
with nothing silenced, and towards pictures that the model never saw. `starts`: 50 steps from the prompt, from noise and from an unrelated
prompt. `search`: text, with 2,000 batches for each picture, one word after the other and by chance. Each is a call of
`nemo-edge attack` that goes on where it was interrupted; more pictures are added by a higher `--limit`. `size`: one step and one batch at
512 × 512 pixels with random weights, with the memory that they take.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.cpu.full_size import watched
from benchmarks.shared import DEMO_BUNDLE, ROOM, ROOT, here, keep, kept

PARTS: dict[str, tuple[str, ...]] = {
    "curves": ("--only", "embedding", "--start", "unrelated", "--steps", "150"),
    "starts": ("--only", "embedding", "--start", "prompt", "--start", "noise", "--start", "unrelated", "--steps", "50"),
    "search": ("--only", "text", "--text", "greedy search", "--text", "random search", "--batches", "2000", "--candidates", "64"),
}
"""What each asks of `nemo-edge attack` beside the bundle, the limit and the output."""
SIZE = """
import json, sys, time
from pathlib import Path
import torch
from nemo_edge.measure.attacks.embedding import BATCH, EmbeddingAttack
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.system.memory import learned_rows_at_once
checkpoint = open_checkpoint(sys.argv[1])
told = eager_pipeline(checkpoint).encode(["a red pig"], (512, 512))
objective, rows = Objective.of(checkpoint), learned_rows_at_once(512 * 512)
latents = torch.randn(4, 64, 64, generator=torch.Generator().manual_seed(0))
noised = objective.noised(latents, BATCH, torch.Generator().manual_seed(0))
started = time.perf_counter()
with torch.no_grad():
    for part in noised.split(rows):
        objective.loss({name: torch.from_numpy(value) for name, value in told.items()}, part)
batch_s = time.perf_counter() - started
started = time.perf_counter()
list(EmbeddingAttack(objective, 1, 0, rows)(latents, told))
print(json.dumps({"rows_at_once": rows, "batch_s": round(batch_s, 1), "step_s": round(time.perf_counter() - started, 1)}))
"""
WEIGHTS = """
import sys
from pathlib import Path
from nemo_edge.release.random_weights import write_random
write_random("sd15", Path(sys.argv[1]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[*PARTS, "size"], metavar="part", help="curves, starts, search, size; else all")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, help="a finished demo bundle")
    parser.add_argument("--limit", type=int, default=12, help="memories, and controls")
    arguments = parser.parse_args()
    for part in arguments.parts:
        found = full_size() if part == "size" else attacked(part, arguments.bundle, arguments.limit)
        keep("attack", {**kept("attack"), part: {**here(), **found}})


def attacked(part: str, bundle: Path, limit: int) -> dict[str, Any]:
    """Run one part; return what came back, by whom, and the seconds if it was run in one go."""
    output = ROOM / "attack" / f"{part}.json"
    begun, started = output.with_suffix(".jsonl").exists(), time.monotonic()
    options = [*PARTS[part], "--limit", str(limit)]
    command = ["nemo-edge", "attack", "engines/out/demo", *options, "-o", output.relative_to(ROOT).as_posix()]
    subprocess.run([sys.executable, "-m", "nemo_edge.cli", "attack", str(bundle), *options, "-o", str(output)], check=True, cwd=ROOT)
    seconds = {} if begun else {"wall_s": round(time.monotonic() - started), "threads": int(os.environ.get("OMP_NUM_THREADS", "0")) or None}
    found = json.loads(output.read_text())
    told = ("checkpoint", "neurons", "neurons_hash", "engine", "settings", "copy_threshold", "levels", "rates")
    return {"command": command, **seconds, **{name: found[name] for name in told}, "texts": texts(found)}


def texts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The best text that each search ended with."""
    best = [(each, min(each["attempts"], key=lambda a: a["distance"])) for each in found["attacked"] if "search" in each["way"]]
    return [
        {name: each[name] for name in ("group", "way", "prompt", "picture")}
        | {name: attempt[name] for name in ("steps", "text", "loss", "distance", "copied")}
        for each, attempt in best
    ]


def full_size() -> dict[str, Any]:
    """One step of an embedding and one batch of a search at the size of Stable Diffusion 1.5."""
    weights = ROOM / "attack" / "sd15"
    watched([sys.executable, "-c", WEIGHTS, str(weights)])
    found = watched([sys.executable, "-c", SIZE, str(weights)])
    return {**json.loads(found["output"]), "peak_mb": found["peak_mb"], "architecture": "sd15", "pixels": 512}


if __name__ == "__main__":
    main()
