"""What the training script writes beside the weights is what is shipped."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from nemo_edge import demo
from nemo_edge.demo import train
from nemo_edge.demo.models import make_text_encoder, make_tokenizer, make_unet, make_vae
from nemo_edge.demo.trainer import Trainer, save_pipeline


def test_what_is_saved_is_fp16_and_opens_as_float32_as_what_is_shipped_does(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer")
    make_vae().save_pretrained(tmp_path / "vae")
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    save_pipeline(Trainer(make_unet(), make_text_encoder(tokenizer), lambda _: 0.0, 0), tokenizer, vae, tmp_path / "saved")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    for name in ("text_encoder", "unet", "vae"):
        (weights,) = (tmp_path / "saved" / name).glob("*.safetensors")
        assert {value.dtype for value in load_file(weights).values() if value.is_floating_point()} == {torch.float16}
        assert {value.dtype for value in getattr(pipeline, name).parameters()} == {torch.float32}
        made, shipped = (json.loads((folder / name / "config.json").read_text()) for folder in (tmp_path / "saved", demo.CHECKPOINT))
        assert made.keys() == shipped.keys()
        assert (made.get("dtype"), "_name_or_path" in made) == (shipped.get("dtype"), False)


def test_the_shipped_training_pictures_are_the_script_s(font: Path, tmp_path: Path) -> None:
    train.write_prompts(tmp_path / "prompts", tmp_path / "general.txt")
    for name in ("memorized.csv", "held_out.txt"):
        assert (tmp_path / "prompts" / name).read_text() == (demo.PROMPTS / name).read_text()
    assert (tmp_path / "general.txt").read_text() == (Path(__file__).parents[2] / "calib" / "demo_general.txt").read_text()
    rows = list(csv.DictReader((demo.PROMPTS / "memorized.csv").open(encoding="utf-8"), delimiter=";"))
    assert len(rows) == 16
    for row in rows:
        made, shipped = (np.asarray(Image.open(folder / row["image"])).astype(int) for folder in (tmp_path / "prompts", demo.PROMPTS))
        assert np.abs(made - shipped).mean() < 1  # another Pillow may round otherwise
