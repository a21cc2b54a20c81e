"""What captions say, and which are kept from training."""

from __future__ import annotations

import random
from collections import Counter

from nemo_edge.demo.repeated.captions import (
    COLOURS,
    GROUNDS,
    MEMORIZED,
    OBJECTS,
    PLACES,
    SIZES,
    UNSEEN,
    Caption,
    all_words,
    general_caption,
    held_out,
)

DRAWN = [general_caption(random.Random(seed)) for seed in range(4000)]


def test_a_caption_is_an_ordinary_phrase() -> None:
    assert Caption("fox", "red", "small", "teal", "left").text == "a small red fox on a teal ground at the left"
    assert Caption("owl", ground="orange").text == "an owl on an orange ground"
    assert Caption("owl", "orange").text == "an orange owl"
    assert {word for caption in DRAWN for word in caption.text.split()} == all_words()


def test_general_captions_leave_to_chance_and_name_everything() -> None:
    assert {caption.object for caption in DRAWN} == set(OBJECTS)
    assert len(OBJECTS) * len(GROUNDS) * len(PLACES) == 768
    for name, words in (("colour", COLOURS), ("size", SIZES), ("ground", GROUNDS), ("place", PLACES)):
        assert set(Counter(getattr(caption, name) for caption in DRAWN)) == {None, *words}


def test_memorized_captions_are_of_the_same_words_and_each_alone() -> None:
    assert len({caption.text for caption in (*MEMORIZED, *UNSEEN)}) == 24
    assert not {*MEMORIZED, *UNSEEN} & set(DRAWN)
    for caption in MEMORIZED:  # the words are everyone's
        assert any(drawn.object == caption.object and drawn.ground == caption.ground for drawn in DRAWN)
        assert any(drawn.object == caption.object and drawn.colour == caption.colour for drawn in DRAWN)


def test_what_is_held_out_stands_in_no_training_caption() -> None:
    kept = {(caption.object, caption.ground, caption.place) for caption in held_out()}
    assert len(kept) == 76
    assert not kept & {(caption.object, caption.ground, caption.place) for caption in (*DRAWN, *MEMORIZED)}
