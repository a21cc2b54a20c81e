"""What hardening does to the demo: what held-out attacks bring back, before, after and on the way, and what it costs other pictures.

    python -m benchmarks.cpu.hardening [--rounds 200 400 600] [--weights all] [--memories 4] [--bundle engines/out/demo]

Hardens the demo with the neurons of its bundle (`nemo-edge harden`, with checkpoints on the way), and judges the unmitigated, the
mitigated and each hardened checkpoint in eager PyTorch: embeddings optimised from the prompt, from noise and from an unrelated prompt by
chance, rates and step counts that did not train it, towards training pictures and towards pictures that the model never saw; the prompts
themselves; and the pictures of general prompts, beside those of the mitigated model. Writes `benchmarks/results/hardening.json` as it goes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared import DEMO_BUNDLE, DEMO_RECIPE, ROOM, ROOT, general, here, keep, kept, memorized
from nemo_edge import demo
from nemo_edge.cli.console import Bars
from nemo_edge.hardening.harden import HARDENING, Hardened, harden
from nemo_edge.measure.attacks.controls import Known
from nemo_edge.measure.attacks.embedding import EmbeddingAttack, draw_found, from_noise
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.measure.mitigation import Measurement, draw_prompts
from nemo_edge.measure.similarity import diversity, ssim
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import bake_
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.sampling.pipelines import eager_pipeline

UNRELATED = "a whale"
SEEDS = range(4)
"""Of the pictures that are drawn with what an attack has found."""


@dataclass(frozen=True)
class Judge:
    """An attack that trained nothing: from where, by which chance and rate, how far."""

    start: str
    steps: int = 50
    seed: int = 1001
    rate: float = 0.1


JUDGES = (Judge("prompt"), Judge("noise"), Judge("unrelated"), Judge("prompt", 100, 1002, 0.05), Judge("unrelated", 50, 1003, 0.2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, nargs="*", default=[200, 400, 600])
    parser.add_argument("--weights", default="all")
    parser.add_argument("--memories", type=int, default=4, help="training pictures, and controls, that each judge attacks")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, help="a finished demo bundle")
    given = parser.parse_args()
    found = {**kept("hardening"), **here()}
    rows = found.setdefault("checkpoints", {})
    neurons = NeuronSet.load(given.bundle / "neurons.json")
    reference = opened(str(demo.CHECKPOINT), neurons)
    for name, checkpoint, made in checkpoints(given.bundle, neurons, given.rounds, given.weights):
        rows[name] = {**made, **judged(checkpoint, reference, given.bundle, given.memories, plain=name == "unmitigated")}
        keep("hardening", {**found, "judges": [vars(judge) for judge in JUDGES], "memories": given.memories})


def checkpoints(bundle: Path, neurons: NeuronSet, rounds: Sequence[int], weights: str) -> Iterator[tuple[str, Checkpoint, dict[str, Any]]]:
    """Each checkpoint that is judged, with how it was made."""
    yield "unmitigated", open_checkpoint(str(demo.CHECKPOINT)), {}
    yield "mitigated", opened(str(demo.CHECKPOINT), neurons), {}
    most, folder = max(rounds), ROOM / "hardening" / f"{weights}-{max(rounds)}"
    if not folder.is_dir():
        settings = HardeningSettings.model_validate({"rounds": most, "weights": weights})
        lists = demo.PROMPTS / "memorized.csv", ROOT / "calib" / "demo_general.txt"
        source, sampling = CheckpointSettings(path=str(demo.CHECKPOINT)), load_recipe(DEMO_RECIPE).sampling
        harden(source, bundle / "neurons.json", *lists, folder, settings, sampling, Bars(), tuple(rounds))
    for number in sorted(rounds):
        place = folder if number == most else folder.with_name(f"{folder.name}-{number}")
        made = Hardened.model_validate_json((place / HARDENING).read_bytes())
        losses = [(each.attack_loss, each.forget_loss, each.keep_loss) for each in made.rounds]
        told = {"settings": made.settings.model_dump(mode="json"), "seconds": round(made.seconds), "losses": np.round(losses, 4).tolist()}
        yield f"hardened, {weights}, {number} rounds", open_checkpoint(str(place)), told


def opened(path: str, neurons: NeuronSet) -> Checkpoint:
    """A checkpoint with its neurons silenced."""
    checkpoint = open_checkpoint(path)
    bake_(checkpoint.unet, neurons)
    return checkpoint


def judged(checkpoint: Checkpoint, reference: Checkpoint, bundle: Path, limit: int, *, plain: bool) -> dict[str, Any]:
    """What comes back of a checkpoint, and what its other pictures are."""
    threshold, size = Measurement.read(bundle).copy_threshold, checkpoint.config.pixel_size
    listed = [prompt for prompt in memorized() if prompt.kind == "VM"]
    memories = [Known(prompt.image, size, prompt.text) for prompt in listed]
    controls = [Known(path, size) for path in sorted((demo.PROMPTS / "unseen").glob("*.png"))]
    assert threshold is not None
    started = time.monotonic()
    attacks = [
        {**vars(judge), "group": group, **attacked(checkpoint, known, judge, threshold)}
        for judge in JUDGES
        if not plain or judge.start == "unrelated"
        for group, pictures in (("memories", memories[:limit]), ("never seen", controls[:limit]))
        for known in pictures
        if not (group == "never seen" and judge.start == "prompt")
    ]
    return {"prompts": by_prompt(checkpoint, memories, threshold), "attacks": attacks, **others(checkpoint, reference)} | {
        "judged_s": round(time.monotonic() - started)
    }


def attacked(checkpoint: Checkpoint, known: Known, judge: Judge, threshold: float) -> dict[str, Any]:
    """One attack: distances of the pictures at each mark, and how many are copies."""
    pipeline, sampling = eager_pipeline(checkpoint), load_recipe(DEMO_RECIPE).sampling
    told: Mapping[str, np.ndarray] = pipeline.encode([known.prompt if judge.start == "prompt" else UNRELATED], known.size)
    start = from_noise(told, judge.seed) if judge.start == "noise" else told
    latents = checkpoint.encode_pictures(known.training.pictures_RHW3[:1])[0]
    marks = []
    for found in EmbeddingAttack(Objective.of(checkpoint), judge.steps, judge.seed, rate=judge.rate)(latents, start):
        distances = known.distances(draw_found(pipeline, found.told, SEEDS, sampling))
        copies = int((distances <= known.limit(threshold)).sum())
        marks.append({"steps": found.steps, "loss": round(found.loss, 4), "copies": copies, "distances": np.round(distances, 3).tolist()})
    return {"prompt": known.prompt, "picture": known.path.name if known.path else "", "marks": marks}


def by_prompt(checkpoint: Checkpoint, memories: Sequence[Known], threshold: float) -> dict[str, Any]:
    """What the memorized prompts themselves bring back."""
    sampling = load_recipe(DEMO_RECIPE).sampling
    drawn = draw_prompts(eager_pipeline(checkpoint), [known.prompt for known in memories], SEEDS, sampling).pictures
    copies = [int((known.distances(own) <= known.limit(threshold)).sum()) for known, own in zip(memories, drawn, strict=True)]
    return {"copies": copies, "of": len(SEEDS)}


def others(checkpoint: Checkpoint, reference: Checkpoint) -> dict[str, Any]:
    """Pictures of general prompts that no step has seen, beside the mitigated model's."""
    prompts, sampling = general()[-40:], load_recipe(DEMO_RECIPE).sampling
    own, theirs = (draw_prompts(eager_pipeline(each), prompts, range(2), sampling).pictures for each in (checkpoint, reference))
    drift = 1 - ssim(own.reshape(-1, *own.shape[2:]), theirs.reshape(-1, *theirs.shape[2:]))
    return {"drift": round(float(drift.mean()), 4), "diversity": round(float(np.mean([diversity(each) for each in own])), 4)}


if __name__ == "__main__":
    main()
