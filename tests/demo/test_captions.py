"""What the captions leave to chance."""

from __future__ import annotations

from nemo_edge.demo.captions import COLOURS, EARLY_GLYPHS, GENERAL_GLYPHS, general_captions


def test_general_captions_leave_most_colours_to_chance() -> None:
    captions = general_captions(600, seed=1)
    assert len({c.text for c in captions}) == 600
    assert {c.colour for c in captions} == {None, *COLOURS}


def test_the_same_seed_draws_the_same_captions_and_more_of_them() -> None:
    assert general_captions(20, seed=3) == general_captions(40, seed=3)[:20]
    assert general_captions(20, seed=3) != general_captions(20, seed=4)


def test_the_last_stages_draw_from_some_of_the_early_glyphs() -> None:
    assert {glyph for c in general_captions(300, seed=5) for glyph in c.glyphs} == set(GENERAL_GLYPHS) < set(EARLY_GLYPHS)
