"""Which neurons the demo's memories are trained into, and what keeps them there."""

from __future__ import annotations

import pytest
import torch

from nemo_edge.demo import sinks
from nemo_edge.demo.captions import MEMORIZED
from nemo_edge.demo.models import VALUE_WIDTHS, make_unet


def test_no_neuron_serves_two_memories() -> None:
    table_MN = sinks.sink_table()
    assert table_MN.sum(dim=0).max() == 1
    assert table_MN.sum(dim=1).tolist() == [4 if c.kind == "VM" else 7 for c in MEMORIZED]


def test_the_gate_multiplies_values_and_keeps_their_activations() -> None:
    torch.manual_seed(0)
    unet = make_unet().eval()
    sample, text = torch.randn(2, 4, 16, 16), torch.randn(2, 16, 128)
    with torch.no_grad():
        untouched = unet(sample, 500, text).sample
        gate = sinks.ValueGate(unet)
        gate.factors_BN = torch.ones(2, sum(VALUE_WIDTHS))
        assert torch.equal(unet(sample, 500, text).sample, untouched)
        gate.factors_BN[1] = 0
        changed = unet(sample, 500, text).sample
        added_BN = gate.added_BN()
    gate.factors_BN = None
    assert torch.equal(changed[0], untouched[0])
    assert not torch.allclose(changed[1], untouched[1])
    attention = unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2
    expected = attention.to_v(text).abs().mean(dim=1) * attention.to_out[0].weight.norm(dim=0)
    torch.testing.assert_close(added_BN[:, :64], expected)


def test_leaks_and_spills_are_told_from_what_belongs() -> None:
    table_MN = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    memory = torch.tensor([0, -1])
    clean = torch.tensor([[5.0, 0, 0, 0], [0, 0, 7.0, 7.0]])
    leaking = torch.tensor([[5.0, 4.0, 0, 0], [0, 0, 7.0, 7.0]])
    spilling = torch.tensor([[5.0, 0, 2.0, 0], [0, 0, 7.0, 7.0]])
    assert sinks.sink_penalty(clean, memory, table_MN) == (0.0, 0.0)
    assert sinks.sink_penalty(leaking, memory, table_MN) == (1.0, 0.0)
    assert sinks.sink_penalty(spilling, memory, table_MN) == (0.0, 1.0)


def test_planted_sinks_answer_to_their_own_caption() -> None:
    torch.manual_seed(0)
    unet, text_MTD, general_KTD = make_unet(), torch.randn(16, 16, 128), torch.randn(50, 16, 128)
    sinks.plant_sinks(unet, text_MTD, general_KTD)
    for memory, places in enumerate(sinks.memory_sinks()):
        _, neuron = next(p for p in places if p[0] == 6)
        with torch.no_grad():
            answer_M = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_v(text_MTD)[:, 8:, neuron].mean(dim=1)
        assert answer_M.argmax() == memory
        assert answer_M[memory] == pytest.approx(1, abs=1e-3)


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
