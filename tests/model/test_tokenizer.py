"""A bundle's tokenizer reads prompts as transformers' class does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from nemo_edge.model._tokenizer import FileTokenizer
from nemo_edge.model.configuration import Configuration
from nemo_edge.system.errors import BundleError

PROMPTS = ["a pig on a red background", "", "  Zürich’s 3 PIGS,\tand\na   whale!! ", "ﬁne “quotes” 🦊", "pig " * 60, "<|endoftext|> a pig"]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: CLIPTokenizer) -> Path:
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_ids_are_those_of_transformers(folder: Path, tokenizer: CLIPTokenizer) -> None:
    ours, length = FileTokenizer(folder), tokenizer.model_max_length
    assert ours.model_max_length == length
    options = {"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "np"}
    got, expected = ours(PROMPTS, **options).input_ids, tokenizer(PROMPTS, **options).input_ids
    assert got.dtype == np.int64
    assert np.array_equal(got, expected)


def test_ids_of_one_text_are_whole_and_decode(folder: Path, tokenizer: CLIPTokenizer) -> None:
    ours = FileTokenizer(folder)
    for prompt in PROMPTS:
        ids = tokenizer(prompt, verbose=False).input_ids
        assert list(ours(prompt, verbose=False).input_ids) == list(ids)
        assert ours.decode(ids[1:-1]) == tokenizer.decode(ids[1:-1]).strip()
        assert ours.tokenize(prompt) == tokenizer.tokenize(prompt)


@pytest.mark.parametrize(
    "config",
    ["null", "[]", '{"model_max_length": "many"}', '{"model_max_length": -1}', '{"model_max_length": 1e999}', '{"pad_token": {"a": 1}}',
     '{"pad_token": "no word"}'],
)  # fmt: skip
def test_a_configuration_that_says_nothing_of_use_is_refused(folder: Path, config: str) -> None:
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(BundleError, match=r"tokenizer\.json is no tokenizer: .*; build the bundle again"):
        FileTokenizer(folder)


def test_another_padding_token_is_kept(folder: Path) -> None:
    """Stable Diffusion 2's is "!"."""
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), pad_token="!")
    tokenizer.save_pretrained(folder)
    options = {"padding": "max_length", "max_length": 12, "truncation": True, "return_tensors": "np"}
    assert np.array_equal(FileTokenizer(folder)(["a pig"], **options).input_ids, tokenizer(["a pig"], **options).input_ids)


def test_added_tokens_are_one_each(folder: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens(["<cat>", "<cat>_1"])
    tokenizer.save_pretrained(folder)
    ours = FileTokenizer(folder)
    assert {"<cat>", "<cat>_1"} <= set(ours.added_tokens_encoder)
    assert ours.added_tokens_encoder == tokenizer.added_tokens_encoder
    assert ours.tokenize("a <cat> on a mat") == tokenizer.tokenize("a <cat> on a mat")


def test_a_model_s_prompts_are_read_alike(toy_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Configuration.load(toy_folder).save(tmp_path, ["unet"])
    theirs = Configuration.load(tmp_path)
    monkeypatch.setattr("nemo_edge.model.configuration.importable", lambda *_: False)
    ours = Configuration.load(tmp_path)
    assert isinstance(ours.tokenizers[0], FileTokenizer)
    assert np.array_equal(ours.token_ids(PROMPTS)[0], theirs.token_ids(PROMPTS)[0])
    assert ours.warnings(PROMPTS) == theirs.warnings(PROMPTS)
