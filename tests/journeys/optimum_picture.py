"""Draws pictures with optimum-onnx, in the environment of `make optimum`; knows nothing of nemo-edge.

    python -I optimum_picture.py '{"folder": …, "noise": …, "out": …, "call": {…}}'

loads the folder as it is, draws from the noise (`.npy`, [B, C, H, W]) and saves the pictures (`.npy`, uint8 [B, height, width, 3]).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import ORTDiffusionPipeline, ORTStableDiffusionPipeline, ORTStableDiffusionXLPipeline

CLASSES = {"StableDiffusionPipeline": ORTStableDiffusionPipeline, "StableDiffusionXLPipeline": ORTStableDiffusionXLPipeline}


def main() -> None:
    job = json.loads(sys.argv[1])
    expected = CLASSES[json.loads((Path(job["folder"]) / "model_index.json").read_text())["_class_name"]]
    found = type(ORTDiffusionPipeline.from_pretrained(job["folder"]))
    if found is not expected:
        sys.exit(f"ORTDiffusionPipeline took the folder for a {found.__name__}, expected a {expected.__name__}")
    pipeline = expected.from_pretrained(job["folder"])
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(latents=torch.from_numpy(np.load(job["noise"])), **job["call"]).images
    np.save(job["out"], np.stack([np.asarray(picture) for picture in pictures]))


if __name__ == "__main__":
    main()
