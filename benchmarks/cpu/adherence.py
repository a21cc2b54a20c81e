"""What the second demo shows: what its pictures show beside their captions, what it gives back, and how well that is told.

    python -m benchmarks.cpu.adherence [--bundle engines/out/repeated] [--checkpoint FOLDER]

In eager PyTorch, as the recipe samples, before and with a finished bundle's neurons silenced (`nemo-edge build engines/repeated.toml`);
without a bundle only before. Adherence is the recogniser's, on captions whose words were never together in training, on others like those
of training, and on the memorized ones. Writes `benchmarks/results/adherence.json`.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.shared import DEMOS, ROOM, ROOT, here, keep
from nemo_edge.demo import repeated
from nemo_edge.demo.repeated.captions import MEMORIZED, UNSEEN, Caption, general_caption, held_out
from nemo_edge.demo.repeated.pictures import draw, draw_memorized
from nemo_edge.demo.repeated.recogniser import Recogniser, load_recogniser
from nemo_edge.demo.samples import encode, scaled
from nemo_edge.localization.calibration import calibrate
from nemo_edge.localization.detection import Detector
from nemo_edge.localization.detectors import rocs_of
from nemo_edge.measure.mitigation import draw_prompts
from nemo_edge.measure.replication import tiled_distances
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.prompts import Prompt, read_prompts
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import LocalizationSettings, SamplingSettings
from nemo_edge.sampling.pipelines import eager_pipeline

RECIPE = DEMOS["repeated"]
GENERAL = ROOT / "calib" / "repeated_general.txt"
CAPTIONS = 200
"""Captions like those of training whose pictures are judged."""
SEEDS = range(10)
"""Of each memorized caption."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOM / "repeated")
    parser.add_argument("--checkpoint", type=Path, default=repeated.CHECKPOINT)
    given = parser.parse_args()
    checkpoint, recogniser = open_checkpoint(str(given.checkpoint)), load_recogniser()
    recipe = load_recipe(RECIPE)
    found = {**here(), "recogniser": of_drawn(checkpoint, recogniser), "detection": detection(checkpoint, recipe.calibration.prompts)}
    found["before"] = shown(checkpoint, recogniser, recipe.sampling)
    print(found, flush=True)
    if (given.bundle / "neurons.json").is_file():
        with silenced(checkpoint.unet, NeuronSet.load(given.bundle / "neurons.json")):
            found["after"] = shown(checkpoint, recogniser, recipe.sampling)
            print(found["after"], flush=True)
    keep("adherence", found)


def of_drawn(checkpoint: Checkpoint, recogniser: Recogniser) -> dict[str, float]:
    """How often it is right about pictures drawn by what drew the training pictures, as the VAE gives them back: all that can be had."""
    rng = random.Random(6)
    captions = [general_caption(rng) for _ in range(CAPTIONS)]
    drawn_BCHW = torch.from_numpy(np.stack([np.asarray(draw(caption, rng)) for caption in captions])).permute(0, 3, 1, 2)
    vae: Any = checkpoint.vae
    with torch.no_grad():
        decoded_BCHW = vae.decode(encode(vae, drawn_BCHW)).sample.clamp(-1, 1)
    return recogniser.adherence(decoded_BCHW, captions)


def shown(checkpoint: Checkpoint, recogniser: Recogniser, sampling: SamplingSettings) -> dict[str, Any]:
    """What its pictures show, and how near those of memorized captions are to their training pictures."""
    rng, pipeline = random.Random(5), eager_pipeline(checkpoint)
    groups = {"held out": held_out(), "like training": [general_caption(rng) for _ in range(CAPTIONS)], "unseen": UNSEEN}

    def judged(captions: Sequence[Caption], pictures: np.ndarray) -> dict[str, float]:
        return recogniser.adherence(scaled(torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2)), captions)

    adherence = {
        name: judged(those, draw_prompts(pipeline, [c.text for c in those], [0], sampling).pictures[:, 0]) for name, those in groups.items()
    }
    drawn = draw_prompts(pipeline, [c.text for c in MEMORIZED], SEEDS, sampling).pictures
    adherence["memorized"] = judged([c for c in MEMORIZED for _ in SEEDS], drawn.reshape(-1, *drawn.shape[2:]))
    training = np.stack([np.asarray(draw_memorized(caption)) for caption in MEMORIZED])
    distances = [tiled_distances(own, theirs[None])[:, 0].round(3).tolist() for own, theirs in zip(drawn, training, strict=True)]
    return {"adherence": adherence, "distances": distances}


def detection(checkpoint: Checkpoint, calibrated: int) -> dict[str, Any]:
    """How well scores tell the memorized captions from others that were not calibrated on."""
    general = [prompt.text for prompt in read_prompts(GENERAL)]
    settings = LocalizationSettings()
    threshold = calibrate(checkpoint, general[:calibrated], settings).threshold
    assert threshold is not None
    known = [Prompt(text=caption.text, kind="VM") for caption in MEMORIZED]
    prompts = [*(Prompt(text=text, kind="N") for text in general[calibrated:]), *known]
    results = Detector(checkpoint, threshold.value, settings).detect_all([prompt.text for prompt in prompts])
    return {
        "threshold": threshold.value,
        "others": len(prompts) - len(known),
        "above": sum(result.memorized for result in results[-len(known) :]),
        "others above": sum(result.memorized for result in results[: -len(known)]),
        "rocs": [roc.model_dump(mode="json") for roc in rocs_of(prompts, results)],
    }


if __name__ == "__main__":
    main()
