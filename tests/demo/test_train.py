"""What the training script writes beside the weights is what is shipped."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from nemo_edge import demo
from nemo_edge.demo import train


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
