"""What the demo is trained on, and the parts of the training that can be checked in a second."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

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
