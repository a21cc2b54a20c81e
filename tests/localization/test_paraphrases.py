"""Variants of a prompt are different, small changes, and always the same ones."""

from __future__ import annotations

from collections import Counter

import pytest

from nemo_edge.localization.paraphrases import listed_words, paraphrases

PROMPT = "Mothers influence on her young Hippo, a photo"


def test_every_kind_takes_its_turn() -> None:
    found = paraphrases(PROMPT, 8)
    assert len(found) == 8
    assert Counter(made.kind for made in found) == {"drop": 2, "swap": 2, "synonym": 2, "case": 2}
    assert len({made.text for made in found} | {PROMPT}) == 9


def test_what_each_kind_does() -> None:
    tokens = PROMPT.split()
    for made in paraphrases(PROMPT, 100):
        changed = made.text.split()
        if made.kind == "drop":
            assert len(changed) == len(tokens) - 1
            assert not Counter(changed) - Counter(tokens)
        if made.kind == "swap":
            assert Counter(changed) == Counter(tokens)
        if made.kind == "case":
            assert made.text.lower() == PROMPT.lower()
        if made.kind == "synonym":
            assert sum(a != b for a, b in zip(changed, tokens, strict=True)) == 1
    assert {m.text.rpartition(" ")[2] for m in paraphrases(PROMPT, 100) if m.kind == "synonym"} == {"picture", "image", "photograph"}


def test_capitals_and_punctuation_stay_with_a_synonym() -> None:
    assert "(Hound)" in {made.text for made in paraphrases("(Dog)", 9)}


def test_the_same_prompt_and_seed_give_the_same() -> None:
    assert paraphrases(PROMPT, 6) == paraphrases(PROMPT, 6)
    assert paraphrases(PROMPT, 6, seed=1) != paraphrases(PROMPT, 6)
    assert paraphrases(PROMPT, 3) == paraphrases(PROMPT, 6)[:3]


@pytest.mark.parametrize(("prompt", "texts"), [("", []), ("zyx", ["ZYX", "Zyx"]), ("a  b", ["A B", "a", "b", "b a"])])
def test_a_short_prompt_has_few(prompt: str, texts: list[str]) -> None:
    assert sorted(made.text for made in paraphrases(prompt, 50)) == texts


def test_the_words_of_our_list_are_each_there_once() -> None:
    words = listed_words()
    assert len(words) == len({*words}) > 300
    assert {"picture", "photo", "big"} <= {*words}
