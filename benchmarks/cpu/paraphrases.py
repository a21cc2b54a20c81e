"""What variants of the demo's memorized captions bring back, before and after the worst of them are localized too.

    python -m benchmarks.cpu.paraphrases

Writes `benchmarks/results/paraphrases.json`; both modes, and for each group of a caption and its variants one line. The neurons that
all groups silence together are compared with the captions' own by what general prompts pay: the score of δ with and without them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.shared import CALIBRATED, general, here, keep, memorized
from nemo_edge import demo
from nemo_edge.backends.torch import open_runner
from nemo_edge.localization.calibration import Calibration, calibrate
from nemo_edge.localization.groups import Group, Groups, all_neurons, clusters_of
from nemo_edge.localization.localizer import Localizer, union
from nemo_edge.localization.memorization import NoiseProbe
from nemo_edge.localization.multiscale import ms_ssim
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.settings import LocalizationSettings

VARIANTS, HELD_OUT = 12, 16
"""Variants asked for a caption, and general prompts that were not calibrated on."""


def main() -> None:
    checkpoint = open_checkpoint(str(demo.CHECKPOINT))
    texts = general()
    calibration = calibrate(checkpoint, texts[:CALIBRATED], LocalizationSettings())
    found: dict[str, Any] = {**here(), "threads": torch.get_num_threads(), "asked": VARIANTS}
    for mode in ("paper", "fast"):
        found[mode] = by(mode, checkpoint, calibration, texts[-HELD_OUT:])
        keep("paraphrases", found)
        print(mode, json.dumps(found[mode])[:1500], flush=True)


def by(mode: str, checkpoint: Checkpoint, calibration: Calibration, held_out: Sequence[str]) -> dict[str, Any]:
    """The captions and their variants in one mode."""
    assert calibration.threshold is not None
    settings = LocalizationSettings.model_validate({"mode": mode})
    localizer = Localizer(checkpoint, calibration.statistics, calibration.threshold.value, settings)
    prompts = memorized()
    started = time.perf_counter()
    own = localizer.localize_all([p.text for p in prompts])
    between = time.perf_counter()
    groups = Groups(localizer, VARIANTS).make_all(clusters_of(prompts, "prompt"), own)
    ended = time.perf_counter()
    sets = {"own": union(own), "groups": all_neurons(groups, own)}
    return {
        "seconds": {"captions": between - started, "groups": ended - between},
        "samples": {"captions": sum(r.samples for r in own), "groups": sum(g.samples for g in groups)},
        "neurons": {name: len(neurons) for name, neurons in sets.items()},
        "general_score": {name: general_score(checkpoint, neurons, held_out) for name, neurons in sets.items()},
        "groups": [line(group) for group in groups],
    }


def line(group: Group) -> dict[str, Any]:
    return {
        "caption": group.name,
        "variants": len(group.variants),
        "same": group.same,
        "memorized": len(group.memorized),
        "leaking_before": [v.text for v in group.leaking_before],
        "leaking_after": [v.text for v in group.leaking_after],
        "joined": [m.prompt for m in group.members if m.variant],
        "neurons": [group.members[0].neurons, len(group.neurons)],
    }


def general_score(checkpoint: Checkpoint, neurons: NeuronSet, prompts: Sequence[str]) -> float:
    """The mean score between δ with and without the neurons, of prompts that no memory belongs to: 1 is untouched."""
    probe, unet = NoiseProbe.of(checkpoint.config, LocalizationSettings()), open_runner(checkpoint.unet_component())
    scores = []
    for prompt in prompts:
        conditioning = {name: value.float().cpu().numpy() for name, value in checkpoint.encode([prompt]).items()}
        plain = probe(unet, conditioning)
        with silenced(checkpoint.unet, neurons):
            scores.append(float(ms_ssim(plain, probe(unet, conditioning)).mean()))
    return sum(scores) / len(scores)


if __name__ == "__main__":
    main()
