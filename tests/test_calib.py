"""The general captions for published models: many, as long as prompts are, each its own. The demo's, made from templates, are not."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from nemo_edge.model.architectures import write_vocabulary
from nemo_edge.recipe.prompts import distinct, read_prompts

ROOT = Path(__file__).parents[1]
PROMPTS = read_prompts(ROOT / "calib" / "general.txt")
CAPTIONS = [prompt.text for prompt in PROMPTS]
TEMPLATES = [prompt.text for prompt in read_prompts(ROOT / "calib" / "demo_general.txt")]
SMALL = frozenset(re.findall(r"\w+", "a an the of in on and with at to from by for under over into is its his her"))
"""Words that hold a sentence together: what is left of a template when its slots are filled."""
NAMED = frozenset(
    re.findall(
        r"\w+",
        "Alaska Atlantic Christmas Earth Egyptian Hanoi Havana Highland Istanbul Italian Japan July June Kyoto Lisbon Marrakesh Mars "
        "Milky Mumbai Myanmar October Pacific Persian Saturn Singapore Taipei Valparaiso Venice Way",
    )
)
"""Places, planets and times of the year: whatever else has a capital letter inside a caption may be somebody's name."""

Words = tuple[str, ...]


def words(caption: str) -> Words:
    return tuple(re.findall(r"[\w'’-]+", caption.casefold()))


def shared(captions: Iterable[str], run: int = 5) -> list[str]:
    """The runs of so many words that stand in more than one caption."""
    counted = Counter(found for caption in captions for found in set(runs(words(caption), run)))
    return [" ".join(found) for found, times in counted.items() if times > 1]


def runs(text: Words, run: int) -> Iterator[Words]:
    return (text[i : i + run] for i in range(len(text) - run + 1))


def twins(captions: Iterable[str]) -> list[list[str]]:
    """Captions of as many words that differ in no more than two of them; of three words, in one."""
    found = defaultdict(list)
    for caption in captions:
        text = words(caption)
        for slots in combinations(range(len(text)), 2 if len(text) > 3 else 1):
            found[tuple("" if i in slots else word for i, word in enumerate(text))].append(caption)
    return [alike for alike in found.values() if len(alike) > 1]


def frames(captions: Iterable[str]) -> Counter[Words]:
    """How many captions have the same small words at the same places; those without any have no frame."""
    found = (tuple(word if word in SMALL else "" for word in words(caption)) for caption in captions)
    return Counter(frame for frame in found if any(frame))


def openings(captions: Iterable[str]) -> Counter[Words]:
    return Counter(words(caption)[:3] for caption in captions)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """How many tokens CLIP's own tokenizer, that of Stable Diffusion 1.x and XL, makes of each caption, without the marks at its ends."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_vocabulary(folder)
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    return [len(ids) - 2 for ids in tokenizer(CAPTIONS)["input_ids"]]


def test_there_are_a_thousand_and_each_is_read_as_its_own() -> None:
    assert len(CAPTIONS) >= 1000
    assert len(distinct(PROMPTS)) == len(CAPTIONS)
    assert (ROOT / "calib" / "general.txt").read_text(encoding="utf-8") == "\n".join(CAPTIONS) + "\n"


@pytest.mark.parametrize("first", [None, 100, 300])
def test_they_are_short_and_long_wherever_the_list_is_cut(tokens: list[int], first: int | None) -> None:
    assert (min(tokens) >= 3, max(tokens) <= 60) == (True, True)
    cut = tokens[:first]
    for least, most, share in ((3, 9, 0.4), (10, 19, 0.25), (20, 60, 0.1)):
        assert sum(least <= count <= most for count in cut) >= share * len(cut)


def test_no_two_share_five_words_in_a_row() -> None:
    assert shared(CAPTIONS) == []
    assert shared(TEMPLATES)


def test_none_is_another_with_other_words_in_its_slots() -> None:
    assert twins(CAPTIONS) == []
    assert twins(TEMPLATES)


def test_no_frame_and_no_opening_is_in_use_again_and_again() -> None:
    assert max(frames(CAPTIONS).values()) <= len(CAPTIONS) / 100
    assert max(frames(TEMPLATES).values()) > len(TEMPLATES) / 10
    assert max(openings(CAPTIONS).values()) <= 5
    assert max(openings(TEMPLATES).values()) > 5


def test_they_name_nobody() -> None:
    inside = [found for caption in CAPTIONS for found in re.findall(r"(?<=[a-z,;] )[A-Z][a-z'’]+", caption)]
    assert set(inside) - NAMED == set()
    assert NAMED - set(inside) == set()
