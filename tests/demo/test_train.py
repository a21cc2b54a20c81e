"""What the demo is trained on, and the parts of the training that can be checked in a second."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nemo_edge import demo
from nemo_edge.demo import train
from nemo_edge.demo.captions import COLOURS, MEMORIZED, general_captions
from nemo_edge.demo.pictures import draw, font_path


@pytest.fixture
def font() -> Path:
    try:
        return font_path()
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_every_word_of_a_caption_is_one_token(tmp_path: Path) -> None:
    tokenizer = train.make_tokenizer(tmp_path)
    for caption in [*MEMORIZED, *general_captions(200, seed=0)]:
        assert len(tokenizer.tokenize(caption.text)) == len(caption.text.split())
    assert len(tokenizer("anything else, even this!").input_ids) > 2


def test_the_shipped_tokenizer_is_the_script_s(tmp_path: Path) -> None:
    train.make_tokenizer(tmp_path)
    shipped = demo.CHECKPOINT / "tokenizer"
    from transformers import CLIPTokenizer

    text = "a pig on a red background"
    ours, theirs = CLIPTokenizer.from_pretrained(str(tmp_path)), CLIPTokenizer.from_pretrained(str(shipped))
    assert ours(text).input_ids == theirs(text).input_ids


def test_general_captions_leave_most_colours_to_chance() -> None:
    captions = general_captions(600, seed=1)
    assert len({c.text for c in captions}) == 600
    assert {c.colour for c in captions} == {None, *COLOURS}


def test_a_verbatim_memory_has_one_picture_and_a_template_one_layout(font: Path) -> None:
    verbatim, template = MEMORIZED[0], next(c for c in MEMORIZED if c.kind == "TM")
    a, b = (np.asarray(draw(verbatim, random.Random(seed))) for seed in (0, 1))
    assert (a == b).all()
    a, b = (np.asarray(draw(template, random.Random(seed))).astype(int) for seed in (0, 1))
    changed = np.abs(a - b).sum(axis=-1) > 0
    assert not changed[:16].any()  # the banner
    assert changed[17:20, 8:56].all()  # the panel


def test_general_pictures_differ_from_draw_to_draw(font: Path) -> None:
    caption = general_captions(1, seed=2)[0]
    a, b = (np.asarray(draw(caption, random.Random(seed))).astype(int) for seed in (0, 1))
    assert np.abs(a - b).mean() > 5


def test_the_shipped_training_pictures_are_the_script_s(font: Path, tmp_path: Path) -> None:
    train.write_prompts(tmp_path / "prompts", tmp_path / "general.txt")
    for name in ("memorized.csv", "held_out.txt"):
        assert (tmp_path / "prompts" / name).read_text() == (demo.PROMPTS / name).read_text()
    assert (tmp_path / "general.txt").read_text() == (Path(__file__).parents[2] / "calib" / "demo_general.txt").read_text()


def test_penalties_count_what_they_say() -> None:
    memorized, lengths = torch.tensor([True, False]), torch.tensor([2.0, 1.0])
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    together = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    weigh = {"first": 0, "rate": 1.0, "begin": 0, "end": 1}
    assert train.penalty(train.Stage(**weigh, sparsity=1.0), apart, lengths, memorized) == pytest.approx(0.75)
    assert train.penalty(train.Stage(**weigh, overlap=1.0), apart, lengths, memorized) == pytest.approx(1e-3)
    assert train.penalty(train.Stage(**weigh, overlap=1.0), together, lengths, memorized) == pytest.approx(0.7076, abs=1e-3)
    assert train.penalty(train.Stage(**weigh, restraint=1.0), together, lengths, memorized) == pytest.approx(1.0)
    assert train.penalty(train.Stage(**weigh, intrusion=1.0), apart, lengths, memorized) == 0
    assert train.penalty(train.Stage(**weigh, intrusion=1.0), together, lengths, memorized) == pytest.approx(0.5)
    assert train.penalty(train.Stage(**weigh, intrusion=1.0), together, lengths, torch.tensor([False, False])) == 0


def test_the_rate_warms_up_and_ends_near_nothing() -> None:
    first, last = train.stage_at(0), train.stage_at(train.STEPS - 1)
    assert first.rate_at(0) < first.rate_at(first.warm_up) / 100
    fresh = train.stage_at(last.begin)
    assert fresh.rate_at(fresh.first) < fresh.rate_at(fresh.first + fresh.warm_up) / 40
    assert last.rate_at(train.STEPS - 1) < last.rate / 50
