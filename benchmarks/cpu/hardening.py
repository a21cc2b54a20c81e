"""What hardening does to the demo: what held-out attacks bring back, before, after and on the way, and what it costs other pictures.

    python -m benchmarks.cpu.hardening [--rounds 200 400 600] [--weights all] [--each 2] [--bundle engines/out/demo]

Hardens the demo with the neurons of its bundle (`nemo-edge harden`, with checkpoints on the way), and judges the unmitigated, the
mitigated and each hardened checkpoint by `hardening_judges`: the prompts themselves, optimised embeddings, those that were found on the
checkpoints before, all of it again after a short fine-tuning, pictures that the model never saw, and the pictures of general prompts that
hardening was not shown. Writes `benchmarks/results/hardening.json` as it goes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cpu.hardening_judges import JUDGES, Judge, Stand, Told, attacked, by_prompt, fine_tune_, others, replayed, steps_to
from benchmarks.shared import DEMO_BUNDLE, DEMO_RECIPE, ROOM, ROOT, general, here, keep, kept, memorized
from nemo_edge import demo
from nemo_edge.cli.console import Bars
from nemo_edge.hardening.harden import HARDENING, Hardened, harden
from nemo_edge.measure.attacks.controls import Known
from nemo_edge.measure.mitigation import Measurement, draw_prompts
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import bake_
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.sampling.pipelines import eager_pipeline

PLAIN, MITIGATED = "unmitigated", "mitigated"
UNSEEN_JUDGE = Judge("unrelated", 1011)
LEVEL_AT = 50
"""Steps on the mitigated checkpoint whose loss towards a never-seen picture says how soon it can be painted elsewhere."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, nargs="*", default=[200, 400, 600])
    parser.add_argument("--weights", default="all")
    parser.add_argument("--each", type=int, default=2, help="training pictures that each judge attacks; every judge has others")
    parser.add_argument("--unseen", type=int, default=4, help="pictures that the model never saw")
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE, help="a finished demo bundle")
    given = parser.parse_args()
    found = {**kept("hardening"), **here(), "each": given.each, "judges": [vars(judge) for judge in JUDGES]}
    rows = found.setdefault("checkpoints", {})
    court = Court(given.bundle, given.each, given.unseen)
    for name, checkpoint, made in checkpoints(given.bundle, court.neurons, given.rounds, given.weights):
        started = time.monotonic()
        rows[name] = {**made, **court.judged(name, checkpoint), "judged_s": round(time.monotonic() - started)}
        keep("hardening", found)


def checkpoints(bundle: Path, neurons: NeuronSet, rounds: Sequence[int], weights: str) -> Iterator[tuple[str, Checkpoint, dict[str, Any]]]:
    """Each checkpoint that is judged, with how it was made."""
    yield PLAIN, open_checkpoint(str(demo.CHECKPOINT)), {}
    yield MITIGATED, mitigated(neurons), {}
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


def mitigated(neurons: NeuronSet) -> Checkpoint:
    """The demo with its neurons silenced."""
    checkpoint = open_checkpoint(str(demo.CHECKPOINT))
    bake_(checkpoint.unet, neurons)
    return checkpoint


class Court:
    """Every judge, with the pictures each attacks, and what was found on the checkpoints before."""

    def __init__(self, bundle: Path, each: int, unseen: int) -> None:
        threshold = Measurement.read(bundle).copy_threshold
        assert threshold is not None
        self.neurons = NeuronSet.load(bundle / "neurons.json")
        plain, reference = open_checkpoint(str(demo.CHECKPOINT)), mitigated(self.neurons)
        self._stand, size = Stand(load_recipe(DEMO_RECIPE).sampling, threshold, "a whale"), plain.config.pixel_size
        self._held_out, self._ordinary = general()[-40:], general()[:32]
        self._theirs = draw_prompts(eager_pipeline(reference), self._held_out, range(2), self._stand.sampling).pictures
        self._pictures = draw_prompts(eager_pipeline(plain), self._ordinary, [7], self._stand.sampling).pictures[:, 0]
        self._memories = [Known(prompt.image, size, prompt.text) for prompt in memorized() if prompt.kind == "VM"]
        self._unseen = [Known(path, size) for path in sorted((demo.PROMPTS / "unseen").glob("*.png"))][:unseen]
        self._each = each
        self._levels: list[float] = []
        self._found: list[tuple[str, Known, Told]] = []

    def judged(self, name: str, checkpoint: Checkpoint) -> dict[str, Any]:
        """What comes back of a checkpoint, and what its other pictures are. The checkpoint is changed by it."""
        attacks = list(self._attacks(name, checkpoint))
        result = {
            "prompts": by_prompt(checkpoint, self._memories, self._stand),
            "attacks": attacks,
            "never seen": list(self._controls(name, checkpoint)),
            **others(checkpoint, self._held_out, self._theirs, self._stand),
        }
        if name in (PLAIN, MITIGATED):
            return result
        result["replayed"] = [{"found on": on, **replayed(checkpoint, known, told, self._stand)} for on, known, told in self._found]
        tuning = fine_tune_(checkpoint, self._ordinary, self._pictures)
        after = {
            "prompts": by_prompt(checkpoint, self._memories, self._stand),
            "attacks": list(self._attacks("fine-tuned", checkpoint, JUDGES[2:4])),
            **others(checkpoint, self._held_out, self._theirs, self._stand),
        }
        return {**result, "after fine-tuning": {**tuning, **after}}

    def _attacks(self, name: str, checkpoint: Checkpoint, judges: Sequence[Judge] = JUDGES) -> Iterator[dict[str, Any]]:
        for judge in judges:
            first = JUDGES.index(judge) * self._each
            for known in [self._memories[(first + number) % len(self._memories)] for number in range(self._each)]:
                attack, told = attacked(checkpoint, known, judge, self._stand)
                if name in (PLAIN, MITIGATED) and judge.start in ("noise", "unrelated"):
                    self._found.append((name, known, told))
                yield attack

    def _controls(self, name: str, checkpoint: Checkpoint) -> Iterator[dict[str, Any]]:
        """Pictures that the model never saw, and how soon the attack's loss is what it is on the mitigated checkpoint."""
        for number, known in enumerate(self._unseen):
            attack, _ = attacked(checkpoint, known, replace(UNSEEN_JUDGE, seed=UNSEEN_JUDGE.seed + number), self._stand)
            if name == MITIGATED:
                self._levels.append(float(np.mean(attack["losses"][LEVEL_AT - 10 : LEVEL_AT])))
            yield {**attack, "as soon as": steps_to(attack["losses"], self._levels[number]) if self._levels else None}


if __name__ == "__main__":
    main()
