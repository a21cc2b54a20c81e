"""The checkpoint that hardening makes, and what is refused before the work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nemo_edge.hardening.harden import HARDENING, Hardened, harden
from nemo_edge.model.checkpoint import open_checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.settings import CheckpointSettings, LoraSettings, SamplingSettings
from nemo_edge.system.errors import InputError

SETTINGS = HardeningSettings(rounds=2, attack_steps=1, surrogates=1, general=1)


@pytest.fixture
def place(toy_folder: Path, tmp_path: Path) -> dict[str, Path]:
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "memorized.csv").write_text("Caption;image\na red pig;a.png\n")
    (tmp_path / "general.txt").write_text("a pig\n")
    layers = value_layers(open_checkpoint(str(toy_folder)).unet)
    NeuronSet.empty(layers).others(2, seed=0).save(tmp_path / "neurons.json")
    return {name: tmp_path / file for name, file in (("neurons", "neurons.json"), ("prompts", "memorized.csv"), ("general", "general.txt"))}


def hardened(toy_folder: Path, place: dict[str, Path], output: Path, settings: HardeningSettings = SETTINGS) -> Hardened:
    sampling = SamplingSettings(steps=1, guidance=1.0)
    return harden(
        CheckpointSettings(path=str(toy_folder)), place["neurons"], place["prompts"], place["general"], output, settings, sampling
    )


def test_the_result_is_a_checkpoint_that_says_how_it_was_made(toy_folder: Path, place: dict[str, Path], tmp_path: Path) -> None:
    found = hardened(toy_folder, place, tmp_path / "out")
    before, after = open_checkpoint(str(toy_folder)), open_checkpoint(str(tmp_path / "out"))
    assert found == Hardened.model_validate_json((tmp_path / "out" / HARDENING).read_bytes())
    assert (len(found.rounds), found.neurons, found.checkpoint) == (2, 2, before.files)
    assert any(not torch.equal(one, other) for one, other in zip(before.unet.parameters(), after.unet.parameters(), strict=True))
    for one, other in zip(before.vae.parameters(), after.vae.parameters(), strict=True):
        assert torch.equal(one, other)
    for layer, rows in NeuronSet.load(place["neurons"]).items():
        assert not after.unet.get_submodule(layer.name).weight[list(rows)].any()
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "memorized.csv", "general.txt", "neurons.json", "out"}


def test_the_same_seed_makes_the_same_weights(toy_folder: Path, place: dict[str, Path], tmp_path: Path) -> None:
    for name, settings in (("a", SETTINGS), ("b", SETTINGS), ("c", SETTINGS.model_copy(update={"seed": 1}))):
        hardened(toy_folder, place, tmp_path / name, settings)
    a, b, c = (open_checkpoint(str(tmp_path / name)).files["unet/diffusion_pytorch_model.safetensors"] for name in "abc")
    assert a == b != c


def test_what_cannot_be_hardened_is_refused_before_the_work(toy_folder: Path, place: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        hardened(toy_folder, place, tmp_path / "there")
    with pytest.raises(InputError, match="lies inside the checkpoint"):
        hardened(toy_folder, place, toy_folder / "out")
    (tmp_path / "unknown.csv").write_text("Caption\na red pig\n")
    with pytest.raises(InputError, match="name it in a column image"):
        hardened(toy_folder, {**place, "prompts": tmp_path / "unknown.csv"}, tmp_path / "out")
    (tmp_path / "same.txt").write_text("a red pig\n")
    with pytest.raises(InputError, match="a prompt is one or the other"):
        hardened(toy_folder, {**place, "general": tmp_path / "same.txt"}, tmp_path / "out")
    fused = CheckpointSettings(path=str(toy_folder), loras=(LoraSettings(path=Path("x.safetensors")),))
    with pytest.raises(InputError, match=r"\(a LoRA is fused into it\): .*save_pretrained"):
        harden(fused, place["neurons"], place["prompts"], place["general"], tmp_path / "out", SETTINGS, SamplingSettings())
    assert not (tmp_path / "out").exists()


def test_checkpoints_on_the_way_are_those_of_shorter_runs(toy_folder: Path, place: dict[str, Path], tmp_path: Path) -> None:
    source, files = CheckpointSettings(path=str(toy_folder)), (place["neurons"], place["prompts"], place["general"])
    harden(source, *files, tmp_path / "out", SETTINGS, SamplingSettings(steps=1, guidance=1.0), marks=(1,))
    hardened(toy_folder, place, tmp_path / "short", SETTINGS.model_copy(update={"rounds": 1}))
    weights = "unet/diffusion_pytorch_model.safetensors"
    mark, short, whole = (open_checkpoint(str(tmp_path / name)).files[weights] for name in ("out-1", "short", "out"))
    assert mark == short != whole
