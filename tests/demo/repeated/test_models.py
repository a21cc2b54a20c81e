"""The network of the second checkpoint."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from nemo_edge.demo.models import CONTEXT, make_tokenizer, text_attentions
from nemo_edge.demo.repeated.captions import MEMORIZED, all_words, general_caption, held_out
from nemo_edge.demo.repeated.models import VALUE_WIDTHS, make_scheduler, make_text_encoder, make_unet


def test_text_enters_through_the_paper_s_seven_value_layers_only() -> None:
    unet = make_unet()
    assert tuple(attention.to_v.out_features for attention in text_attentions(unet)) == VALUE_WIDTHS
    assert not any("up_blocks" in name for name, _ in unet.named_modules() if name.endswith("attn2"))


def test_network_and_tokenizer_fit_each_other(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", all_words())
    ids = tokenizer(MEMORIZED[0].text, padding="max_length", return_tensors="pt").input_ids
    text = make_text_encoder(tokenizer)(ids).last_hidden_state
    assert make_unet()(torch.zeros(1, 4, 16, 16), 1, text).sample.shape == (1, 4, 16, 16)


def test_every_caption_is_one_token_a_word(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "tokenizer", all_words())
    for word in all_words():
        assert len(tokenizer.tokenize(word)) == 1, word
    texts = [caption.text for caption in (*MEMORIZED, *held_out(), *(general_caption(random.Random(seed)) for seed in range(500)))]
    assert max(len(ids) for ids in tokenizer(texts).input_ids) <= CONTEXT


def test_the_noise_ends_without_a_picture_and_sampling_begins_there() -> None:
    scheduler = make_scheduler()
    scheduler.set_timesteps(10)
    assert scheduler.alphas_cumprod[-1] == 0
    assert int(scheduler.timesteps[0]) == 999
    assert (scheduler.alphas_cumprod.diff() < 0).all()
