"""The parts of the demo's pipeline before training."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer

from nemo_edge import demo
from nemo_edge.demo.captions import MEMORIZED, general_captions
from nemo_edge.demo.models import VALUE_WIDTHS, make_tokenizer, make_unet, text_attentions
from nemo_edge.model.checkpoint import value_layers


def test_every_word_of_a_caption_is_one_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    for caption in [*MEMORIZED, *general_captions(200, seed=0)]:
        assert len(tokenizer.tokenize(caption.text)) == len(caption.text.split())
    assert len(tokenizer("anything else, even this!").input_ids) > 2


def test_the_shipped_tokenizer_is_the_script_s(tmp_path: Path) -> None:
    made, shipped = make_tokenizer(tmp_path), CLIPTokenizer.from_pretrained(str(demo.CHECKPOINT / "tokenizer"))
    assert made.get_vocab() == shipped.get_vocab()
    assert made.model_max_length == shipped.model_max_length
    for caption in [*MEMORIZED, *general_captions(50, seed=1)]:
        assert made(caption.text).input_ids == shipped(caption.text).input_ids


def test_text_enters_through_the_paper_s_seven_layers_only() -> None:
    unet = make_unet()
    assert tuple(layer.width for layer in value_layers(unet)) == VALUE_WIDTHS
    assert value_layers(unet, "all") == value_layers(unet)
    assert tuple(attention.to_v.out_features for attention in text_attentions(unet)) == VALUE_WIDTHS
