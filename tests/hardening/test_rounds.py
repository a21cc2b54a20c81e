"""Attack and step in turn: an interrupted run goes on as if it had not been."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nemo_edge.hardening import _rounds
from nemo_edge.hardening._rounds import Run
from nemo_edge.model.checkpoint import open_checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.hardening import HardeningSettings, Weights
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Progress

SETTINGS = HardeningSettings(rounds=8, attack_steps=2, restart=2, surrogates=2, general=2, rate=1e-3)


@pytest.fixture
def listed(tmp_path: Path) -> list[Prompt]:
    found = []
    for number, text in enumerate(("a red pig", "a blue whale")):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[number::2] = 255
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        found.append(Prompt(text=text, image=tmp_path / f"{number}.png"))
    return found


def run_of(
    toy_folder: Path, listed: list[Prompt], work: Path, settings: HardeningSettings = SETTINGS, inputs: str = "a", *, silence: bool = True
) -> Run:
    checkpoint = open_checkpoint(str(toy_folder))
    neurons = NeuronSet.empty(value_layers(checkpoint.unet)).others(3, seed=0)
    sampling = SamplingSettings(steps=1, guidance=2.0)
    return Run(checkpoint, neurons, listed, ["a pig", "a whale"], settings, sampling, work, inputs, silence=silence)


def test_memories_take_turns_and_attacks_begin_again_from_the_next_start(toy_folder: Path, listed: list[Prompt], tmp_path: Path) -> None:
    rounds = run_of(toy_folder, listed, tmp_path / "work").results(Progress())
    assert [each.memory for each in rounds] == [0, 1] * 4
    assert [each.start for each in rounds] == ["prompt"] * 4 + ["noise"] * 4
    assert [each.steps for each in rounds] == [2, 2, 4, 4] * 2
    assert len((tmp_path / "work" / "rounds.jsonl").read_text().splitlines()) == 8


def test_what_is_silenced_stays_silent(toy_folder: Path, listed: list[Prompt], tmp_path: Path) -> None:
    run = run_of(toy_folder, listed, tmp_path / "work")
    before = {name: value.clone() for name, value in run._checkpoint.unet.state_dict().items()}
    run.results(Progress())
    after = run._checkpoint.unet.state_dict()
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    for layer, rows in run._neurons.items():
        assert not after[f"{layer.name}.weight"][list(rows)].any()


@pytest.mark.parametrize("weights", ["all", "low-rank"])
def test_hardening_alone_changes_a_model_whose_neurons_stay(
    toy_folder: Path, listed: list[Prompt], tmp_path: Path, weights: Weights
) -> None:
    """Its teacher has them silenced."""
    settings = SETTINGS.model_copy(update={"weights": weights})
    run = run_of(toy_folder, listed, tmp_path / "work", settings, silence=False)
    plain = open_checkpoint(str(toy_folder)).unet
    for name, value in plain.state_dict().items():
        assert torch.equal(value, run._checkpoint.unet.state_dict()[name])
    with silenced(plain, run._neurons):
        assert all(torch.equal(plain.state_dict()[name.removeprefix("unet.")], value) for name, value in run.student.teacher.items())
    run.results(Progress())
    after = run._checkpoint.unet.state_dict()
    for layer, rows in ((layer, rows) for layer, rows in run._neurons.items() if rows):
        before, now = (state[f"{layer.name}.weight"][list(rows)] for state in (plain.state_dict(), after))
        assert now.any(dim=1).all()
        assert not torch.equal(now, before)


def test_an_interrupted_run_goes_on_bit_for_bit(
    toy_folder: Path, listed: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rounds, "_SAVED_EVERY", 3)
    whole = run_of(toy_folder, listed, tmp_path / "whole")
    expected = whole.results(Progress())
    calls = 0

    def stop(self: Run, *arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise KeyboardInterrupt
        return going(self, *arguments)  # type: ignore[arg-type]

    going = Run._round
    first = run_of(toy_folder, listed, tmp_path / "work")
    monkeypatch.setattr(first, "_round", partial(stop, first))
    with pytest.raises(KeyboardInterrupt):
        first.results(Progress())
    second = run_of(toy_folder, listed, tmp_path / "work")
    assert second.results(Progress()) == expected
    for name, value in whole._checkpoint.unet.state_dict().items():
        assert torch.equal(value, second._checkpoint.unet.state_dict()[name]), name


def test_a_run_of_something_else_is_not_gone_on_with(
    toy_folder: Path, listed: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rounds, "_SAVED_EVERY", 2)
    short = SETTINGS.model_copy(update={"rounds": 2})
    run_of(toy_folder, listed, tmp_path / "work", short).results(Progress())
    with pytest.raises(InputError, match="with other settings: give another --output, or delete it"):
        run_of(toy_folder, listed, tmp_path / "work", short, inputs="b").results(Progress())
