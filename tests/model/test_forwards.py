"""The modules that are exported: plain tensors in and out, and the values of the modules inside."""

from __future__ import annotations

import pytest
import torch

from nemo_edge.model._forwards import DecoderGraph, HiddenTextGraph, TextGraph, UNetGraph
from nemo_edge.model.checkpoint import Checkpoint

IDS = torch.tensor([[1, 5, 2], [1, 7, 2]])


def test_a_text_encoder_gives_its_last_state_and_the_pooled_output(toy: Checkpoint) -> None:
    last, pooled = TextGraph(toy.text_encoders[0])(IDS)
    expected = toy.text_encoders[0](IDS)
    assert torch.equal(last, expected.last_hidden_state)
    assert torch.equal(pooled, expected.pooler_output)


def test_a_text_encoder_that_is_cut_gives_the_state_before_its_last_layers_too(toy: Checkpoint) -> None:
    encoder = toy.text_encoders[0]
    last, pooled, skipped = TextGraph(encoder, 1)(IDS)
    expected = encoder(IDS, output_hidden_states=True)
    assert torch.equal(last, expected.last_hidden_state)
    assert torch.equal(pooled, expected.pooler_output)
    norm = getattr(encoder, "text_model", encoder).final_layer_norm
    assert torch.equal(skipped, norm(expected.hidden_states[1]))


@pytest.mark.parametrize("place", [0, 1])
def test_of_xl_the_output_of_two_dimensions_is_first_where_it_is_the_embedding(toy_sdxl: Checkpoint, place: int) -> None:
    encoder = toy_sdxl.text_encoders[place]
    first, second, *hidden = HiddenTextGraph(encoder)(IDS)
    assert (first.dim(), second.dim()) == ((3, 2) if place == 0 else (2, 3))
    assert len(hidden) == encoder.config.num_hidden_layers + 1
    assert hidden[-1].shape == (first if place == 0 else second).shape


def test_a_unet_of_xl_is_left_as_it_was(toy_sdxl: Checkpoint) -> None:
    """Its sines are cast on their way only while the graph runs."""
    feed = toy_sdxl.unet_component().example(2)
    arguments = [torch.from_numpy(array) for array in feed.values()]
    (found,) = UNetGraph(toy_sdxl.unet, ["text_embeds", "time_ids"])(*arguments)
    sample, time, states, embeds, ids = arguments
    added = {"text_embeds": embeds, "time_ids": ids}
    expected = toy_sdxl.unet(sample, time, states, added_cond_kwargs=added).sample
    assert torch.equal(found, expected)
    assert not toy_sdxl.unet.add_time_proj._forward_hooks


def test_the_decoder_decodes(toy: Checkpoint) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(DecoderGraph(toy.vae)(latents)[0], toy.vae.decode(latents).sample)
