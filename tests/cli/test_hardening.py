"""`nemo-edge harden` from options to the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from cli.test_main import Run, run
from nemo_edge.model.checkpoint import open_checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet

__all__ = ["run"]


def test_a_checkpoint_is_hardened_and_what_it_took_is_told(run: Run, toy_folder: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "memorized.csv").write_text("Caption;image\na red pig;a.png\n")
    (tmp_path / "general.txt").write_text("a pig\n")
    NeuronSet.empty(value_layers(open_checkpoint(str(toy_folder)).unet)).others(2, seed=0).save(tmp_path / "neurons.json")
    given = ["--neurons", tmp_path / "neurons.json", "--prompts", tmp_path / "memorized.csv", "--general", tmp_path / "general.txt"]
    command = ["harden", str(toy_folder), *map(str, given), "--rounds", "1", "--weights", "cross-attention"]
    shown = run(*command, "-o", str(tmp_path / "out"))
    assert shown.code == 0, shown.err
    assert "Nothing is claimed yet" in shown.out
    assert (tmp_path / "out" / "hardening.json").is_file()
    told = run(*command, "-o", str(tmp_path / "again"), "--json")
    assert json.loads(told.out)["settings"]["weights"] == "cross-attention"


def test_a_wrong_option_is_named(run: Run, tmp_path: Path) -> None:
    given = ["--neurons", "n.json", "--prompts", "p.csv", "--general", "g.txt", "-o", str(tmp_path / "out")]
    shown = run("harden", "nowhere", *given, "--rounds", "0")
    assert shown.code == 2
    assert "--rounds" in shown.err
