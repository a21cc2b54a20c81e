"""The words that are thrown in: those of a tokenizer that is named, else those of general prompts and of our list."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nemo_edge.localization.paraphrases import listed_words
from nemo_edge.measure.attacks.text import vocabulary
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.serving.audit.words import read_vocabulary
from nemo_edge.system.errors import InputError


def test_without_a_tokenizer_they_are_plain_words() -> None:
    found = read_vocabulary(None, ())
    assert {word.text for word in found.words} == {word for word in listed_words() if word.isalpha() and len(word) >= 3}
    assert len(found.words) > 300
    assert found.name == f"{len(found.words)} words of our list"


def test_words_of_general_prompts_come_first() -> None:
    found = read_vocabulary(None, (Prompt(text="A zebra, on 3 Unicycles"), Prompt(text="a zebra")))
    assert [word.text for word in found.words[:2]] == ["zebra", "unicycles"]
    assert found.name.endswith("words of the general prompts and our list")
    assert found.digest != read_vocabulary(None, ()).digest


def test_a_checkpoint_or_a_tokenizer_has_its_own_words(toy_folder: Path, toy: Checkpoint, tmp_path: Path) -> None:
    own = vocabulary(toy)
    assert read_vocabulary(toy_folder, (Prompt(text="a zebra"),)).words == own
    alone = shutil.copytree(toy_folder / "tokenizer", tmp_path / "words")
    found = read_vocabulary(alone, ())
    assert found.words == own
    assert found.name == f"{len(own)} words of the tokenizer in words"


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "nothing"
    if there:
        folder.mkdir()
    with pytest.raises(InputError, match=r"nothing holds no tokenizer \(.*\): give the folder of a checkpoint"):
        read_vocabulary(folder, ())
