"""A bundle's tokenizer where transformers is not installed: its `tokenizer.json`, called as transformers' class is called here."""

from __future__ import annotations

__all__ = ["FileTokenizer"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nemo_edge.system.errors import BundleError, MissingDependency, first_line
from nemo_edge.system.reading import read_json, read_text

_NO_LIMIT = 10**9
_WORD_END = "</w>"
_END = "<|endoftext|>"
"""CLIP's, which pads where a configuration says nothing."""


@dataclass(frozen=True)
class _Encoded:
    """What a call gives: ids, int64 [B, T], or a list of those of one text."""

    input_ids: Any


class FileTokenizer:
    """The tokenizer in a folder.

    Raises `BundleError` for one that is not there or cannot be read, `MissingDependency` where the package tokenizers is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError as error:
            raise MissingDependency("prompts are read by tokenizers: pip install 'nemo-edge[run]'") from error
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise BundleError(f"{path} is not there, as transformers before 5 leaves it out: build the bundle with transformers 5 or newer")
        config = read_json(folder / "tokenizer_config.json")
        try:
            self._tokenizer = Tokenizer.from_str(read_text(path))
            self._pad = _text(config.get("pad_token") or config.get("eos_token") or _END)
            self.model_max_length = int(config.get("model_max_length") or _NO_LIMIT)
            if self._tokenizer.token_to_id(self._pad) is None or self.model_max_length < 2:
                raise ValueError(f"it pads with {self._pad[:20]!r} to {self.model_max_length}")
        except Exception as error:  # tokenizers raises no class of its own, and a configuration may say anything
            raise BundleError(f"{path} is no tokenizer: {first_line(error)}; build the bundle again") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.added_tokens_encoder = {token.content: number for number, token in self._tokenizer.get_added_tokens_decoder().items()}

    def __call__(self, texts: str | Sequence[str], *, max_length: int | None = None, **_: object) -> _Encoded:
        """Return ids: of several texts padded and cut to `max_length`; of one text all it has."""
        if isinstance(texts, str):
            return _Encoded(self._tokenizer.encode(texts).ids)
        length = max_length or self.model_max_length
        pad, rows = self._tokenizer.token_to_id(self._pad), []
        for text in texts:
            ids = self._tokenizer.encode(text).ids
            if len(ids) > length:
                ids = [*ids[: length - 1], ids[-1]]  # the last place is that of the end
            rows.append([*ids, *[pad] * (length - len(ids))])
        return _Encoded(np.array(rows, np.int64))

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, without those of its beginning and end."""
        tokens: list[str] = self._tokenizer.encode(text, add_special_tokens=False).tokens
        return tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Return the words of ids."""
        words: str = self._tokenizer.decode(list(ids), skip_special_tokens=False)
        return words.replace(_WORD_END, " ").strip()


def _text(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)
