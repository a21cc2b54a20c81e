"""The words that are thrown into a prompt by one who has no weights, and prompts of nothing but such words.

Knows tokenizers, lists of prompts and our own list of words; sends nothing.
"""

from __future__ import annotations

__all__ = ["Vocabulary", "read_vocabulary"]

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_edge.localization.paraphrases import listed_words
from nemo_edge.measure.attacks.text import Word, one_token_words
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.files import sha256_json

_FILES = ("tokenizer.json", "vocab.json")
_WORD = re.compile(r"[a-z]{3,}")


@dataclass(frozen=True)
class Vocabulary:
    """Words, and where they come from."""

    words: tuple[Word, ...]
    source: str

    @property
    def name(self) -> str:
        """Their source and number in words."""
        return f"{len(self.words)} words of {self.source}"

    @property
    def digest(self) -> str:
        """Hash of the words."""
        return sha256_json([word.text for word in self.words])


def read_vocabulary(folder: Path | None, general: Sequence[Prompt]) -> Vocabulary:
    """Return the words of the tokenizer in a folder (a checkpoint's, a bundle's, or its own), which an attacker of that model would take.

    Without a folder those of general prompts and of our list, which are words of prompts. Raises `InputError` for a folder without one.
    """
    if folder is not None:
        words = one_token_words(_tokenizers(folder))
        if not words:
            raise InputError(f"the tokenizer in {folder} has no words of one token: leave --vocabulary out, and plain words are taken")
        return Vocabulary(words, f"the tokenizer in {folder.name}")
    said = dict.fromkeys(word for prompt in general for word in _WORD.findall(prompt.text.lower()))
    plain = dict.fromkeys([*said, *(word for word in listed_words() if _WORD.fullmatch(word))])
    return Vocabulary(tuple(Word(text, ()) for text in plain), "the general prompts and our list" if said else "our list")


def _tokenizers(folder: Path) -> Sequence[Any]:
    if (folder / "model_index.json").is_file():
        return Configuration.load(folder).tokenizers
    from transformers import CLIPTokenizer

    try:
        if not any((folder / name).is_file() for name in _FILES):  # transformers makes an empty one of an empty folder
            raise OSError(f"it has no {' and no '.join(_FILES)}" if folder.is_dir() else "it is no folder")
        return (CLIPTokenizer.from_pretrained(str(folder), local_files_only=True),)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"{folder} holds no tokenizer ({first_line(error)}): give the folder of a checkpoint, or of its tokenizer"
        ) from error
