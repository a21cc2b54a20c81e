"""What the recogniser says of pictures, and how adherence is counted."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from nemo_edge.demo.repeated.captions import Caption, general_caption
from nemo_edge.demo.repeated.pictures import draw
from nemo_edge.demo.repeated.recogniser import RECOGNISER, Recogniser, load_recogniser
from nemo_edge.demo.samples import scaled

SEEN = [Caption("fox", "red", "small", "teal", "left"), Caption("owl", None, "large", "pink", "top")]


class Scripted(Recogniser):
    """One that sees what it is told."""

    def shown(self, pictures_BCHW: torch.Tensor) -> list[Caption]:
        return SEEN[: len(pictures_BCHW)]


def test_adherence_counts_what_a_caption_names() -> None:
    asked = [Caption("fox", "blue", None, "teal"), Caption("owl", ground="red")]
    found = Scripted().adherence(torch.zeros(2, 3, 64, 64), asked)
    assert found == {"object": 1.0, "colour": 0.0, "ground": 0.5, "all": 0.0}


def test_an_object_of_its_own_colour_is_named_without_one() -> None:
    torch.manual_seed(0)
    recogniser = Recogniser()
    with torch.no_grad():
        recogniser.heads["colour"].bias[0] = 100.0
    assert [caption.colour for caption in recogniser.shown(torch.rand(3, 3, 64, 64))] == [None] * 3


def test_the_shipped_recogniser_is_small_and_right_about_drawn_pictures(font: Path) -> None:
    assert RECOGNISER.stat().st_size <= 1e6
    rng = random.Random(7)
    captions = [general_caption(rng) for _ in range(200)]
    drawn = np.stack([np.asarray(draw(caption, rng)) for caption in captions])
    found = load_recogniser().adherence(scaled(torch.from_numpy(drawn).permute(0, 3, 1, 2)), captions)
    assert found["object"] > 0.95
    assert found["ground"] > 0.95
    assert found["place"] > 0.95
