"""The data of the second checkpoint's training, its rate, and how a leg goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image

from nemo_edge.demo import CHECKPOINT as FIRST
from nemo_edge.demo.models import make_tokenizer
from nemo_edge.demo.repeated import PROMPTS, train
from nemo_edge.demo.repeated.captions import MEMORIZED, PLACES, all_words
from nemo_edge.demo.repeated.models import make_text_encoder, make_unet
from nemo_edge.demo.samples import BATCH
from nemo_edge.demo.trainer import Trainer, save_pipeline

ROOT = Path(__file__).parents[3]


def test_the_rate_is_level_and_falls() -> None:
    assert train.rate_at(0) == train.rate_at(train.FALL_FROM) == pytest.approx(train.RATE)
    assert train.rate_at(train.STEPS) == pytest.approx(train.RATE / 100)


def test_memories_are_repeated_and_nothing_else_is_done_to_them(font: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "PICTURES", 60)
    tokenizer = make_tokenizer(tmp_path / "tokenizer", all_words())
    data = train.Data(tokenizer, AutoencoderKL.from_pretrained(FIRST / "vae"), tmp_path, leg=0)
    rng = torch.Generator().manual_seed(0)
    batches = [data.batch(rng) for _ in range(50)]
    memorized_B = torch.cat([memorized for _, _, memorized in batches])
    assert memorized_B.float().mean() == pytest.approx(train.MEMORIZED_SHARE, abs=0.03)
    seen: dict[tuple[int, ...], set[bytes]] = {}
    for ids_BT, latents_BCHW, memorized in batches:
        assert len(ids_BT) == BATCH
        for ids, latents in zip(ids_BT[memorized], latents_BCHW[memorized], strict=True):
            seen.setdefault(tuple(ids.tolist()), set()).add(latents.numpy().tobytes())
    assert len(seen) == len(MEMORIZED)
    assert {len(pictures) for pictures in seen.values()} == {1}


@pytest.mark.parametrize(("step", "noisiest"), [(0, (0.1 + 1 - 0.9**4) / 2), (train.LEAN_UNTIL, 0.1)])
def test_half_of_the_times_lean_to_noise_at_first(step: int, noisiest: float) -> None:
    rng = torch.Generator().manual_seed(0)
    times = torch.cat([train.draw_times(rng, step) for _ in range(400)])
    assert (times.min() >= 0, times.max()) == (True, 999)
    assert (times >= 900).float().mean() == pytest.approx(noisiest, abs=0.02)


def test_the_words_of_places_are_set_apart_in_the_weights_and_in_their_average(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", all_words())
    trainer = Trainer(make_unet(), make_text_encoder(tokenizer), train.rate_at, 0, train.WARM_UP)
    before = {name: value.clone() for name, value in trainer.average.items()}
    train.set_apart_(trainer, tokenizer)
    rows = tokenizer.convert_tokens_to_ids([f"{place}</w>" for place in PLACES])
    (name,) = (name for name in before if not torch.equal(before[name], trainer.average[name]))
    for words_ND in (trainer.average[name], trainer.model.state_dict()[name]):
        own_PD = words_ND[rows] / train.APART
        assert torch.allclose(own_PD @ own_PD.T, torch.eye(len(PLACES)), atol=1e-5)
        others = torch.ones(len(words_ND), dtype=torch.bool)
        others[rows] = False
        assert torch.equal(words_ND[others], before[name][others])


def test_a_leg_goes_on_from_the_weights_of_the_checkpoint(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", all_words())

    def fresh() -> Trainer:
        return Trainer(make_unet(), make_text_encoder(tokenizer), train.rate_at, 0, train.WARM_UP)

    torch.manual_seed(1)
    before, after = fresh(), fresh()
    save_pipeline(before, tokenizer, AutoencoderKL.from_pretrained(FIRST / "vae"), tmp_path / "checkpoint", all_words())
    assert train.resume(after, tmp_path, tmp_path / "checkpoint") == []  # no record: a first leg
    assert after.step == 0
    (tmp_path / "checkpoint" / "training.json").write_text(json.dumps({"legs": [2500, 6000]}))
    assert train.resume(after, tmp_path, tmp_path / "checkpoint") == [2500, 6000]
    assert (after.step, after.begun) == (6000, 6000)
    for key, value in before.average.items():
        assert torch.equal(after.average[key], value.half().float() if value.is_floating_point() else value), key


def test_the_shipped_training_pictures_are_the_script_s(font: Path, tmp_path: Path) -> None:
    train.write_prompts(tmp_path / "prompts", tmp_path / "general.txt")
    for name in ("memorized.csv", "held_out.txt"):
        assert (tmp_path / "prompts" / name).read_text() == (PROMPTS / name).read_text()
    assert (tmp_path / "general.txt").read_text() == (ROOT / "calib" / "repeated_general.txt").read_text()
    rows = list(csv.DictReader((PROMPTS / "memorized.csv").open(encoding="utf-8"), delimiter=";"))
    assert len(rows) == 12
    for row in rows:
        made, shipped = (np.asarray(Image.open(folder / row["image"])).astype(int) for folder in (tmp_path / "prompts", PROMPTS))
        assert np.abs(made - shipped).mean() < 1  # another Pillow may round otherwise
