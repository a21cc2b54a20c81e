"""What is fixed in a picture and what is not."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from nemo_edge.demo.captions import MEMORIZED, general_captions
from nemo_edge.demo.pictures import draw


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
