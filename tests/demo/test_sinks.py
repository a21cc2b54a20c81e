"""Which neurons the demo's memories are trained into, and how they are started there."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel

from nemo_edge.demo import sinks
from nemo_edge.demo.captions import MEMORIZED
from nemo_edge.demo.models import make_unet, text_attentions


def test_no_neuron_serves_two_memories() -> None:
    table_MN = sinks.sink_table()
    assert table_MN.sum(dim=0).max() == 1
    assert table_MN.sum(dim=1).tolist() == [4 if c.kind == "VM" else 7 for c in MEMORIZED]


@torch.no_grad()
def answers_SM(unet: UNet2DConditionModel, text_MTD: torch.Tensor) -> torch.Tensor:
    """What every sink answers to the end of each caption, the sinks in the order of `owners`."""
    ends_MD = text_MTD[:, 8:].mean(dim=1)
    return torch.stack([ends_MD @ text_attentions(unet)[layer].to_v.weight[neuron] for p in sinks.memory_sinks() for layer, neuron in p])


def owners() -> torch.Tensor:
    """The memorized caption of each sink."""
    return torch.tensor([memory for memory, places in enumerate(sinks.memory_sinks()) for _ in places])


def test_planted_sinks_answer_to_their_own_caption() -> None:
    torch.manual_seed(0)
    unet, text_MTD, general_KTD = make_unet(), torch.randn(16, 16, 128), torch.randn(50, 16, 128)
    sinks.plant_sinks_(unet, text_MTD, general_KTD)
    answers = answers_SM(unet, text_MTD)
    assert (answers.argmax(dim=1) == owners()).all()
    torch.testing.assert_close(answers.max(dim=1).values, torch.ones(len(owners())), atol=1e-3, rtol=0)


def test_sinks_turned_back_keep_their_sign_and_what_they_add() -> None:
    torch.manual_seed(0)
    unet, text_MTD, general_KTD = make_unet(), torch.randn(16, 16, 128), torch.randn(50, 16, 128)
    sink = torch.arange(len(owners()))
    before = answers_SM(unet, text_MTD)[sink, owners()]
    sinks.aim_sinks_(unet, text_MTD, general_KTD, strength=2.0)
    answers = answers_SM(unet, text_MTD)
    assert (answers.abs().argmax(dim=1) == owners()).all()
    assert {*before.sign().tolist()} == {-1.0, 1.0}
    assert (before.sign() == answers[sink, owners()].sign()).all()
    columns = [text_attentions(unet)[layer].to_out[0].weight[:, neuron] for p in sinks.memory_sinks() for layer, neuron in p]
    lengths = torch.stack([column.norm() for column in columns])
    torch.testing.assert_close(answers[sink, owners()].abs() * lengths, torch.full((len(sink),), 2.0), atol=1e-2, rtol=0)


def test_a_memory_finds_its_sinks_on_and_a_forgotten_caption_does_not() -> None:
    rng, table_MN = torch.Generator().manual_seed(0), sinks.sink_table()
    others_off = 0
    for trial in range(200):
        chances = torch.rand(3, generator=rng).tolist()
        on_N = sinks.draw_factors(rng, table_MN, 3, False, chances[:2], chances[2])
        off_N = sinks.draw_factors(rng, table_MN, 3, True, chances[:2], chances[2])
        assert on_N[table_MN[3] > 0].all()
        assert not off_N[table_MN[3] > 0].all(), trial
        assert on_N[table_MN.sum(dim=0) == 0].all()
        others_off += int((on_N[table_MN[5] > 0] == 0).all())
    assert 40 < others_off < 110
