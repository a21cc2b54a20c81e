"""What the penalties of the demo's training count, and what they move."""

from __future__ import annotations

import pytest
import torch

from nemo_edge.demo import penalties, schedule
from nemo_edge.demo.models import VALUE_WIDTHS, make_unet
from nemo_edge.demo.sinks import sink_table
from nemo_edge.localization.calibration import activations


def test_contributions_are_activations_and_lengths_of_columns_layer_by_layer() -> None:
    torch.manual_seed(0)
    unet, text_BTD = make_unet().eval(), torch.randn(2, 16, 128)
    with torch.no_grad():
        activations_BN, lengths_N = penalties.contributions(unet, text_BTD)
    for place, activations_BW in zip(torch.split(activations_BN, list(VALUE_WIDTHS), 1), activations(unet, text_BTD), strict=True):
        torch.testing.assert_close(place, activations_BW)
    last = unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_out[0].weight
    torch.testing.assert_close(lengths_N[-VALUE_WIDTHS[-1] :], last.norm(dim=0))


def test_the_penalty_on_sinks_moves_values_only() -> None:
    torch.manual_seed(0)
    unet, text_BTD, table_MN = make_unet(), torch.randn(2, 16, 128, requires_grad=True), sink_table()
    stage = schedule.Stage(first=0, rate=1.0, begin=0, end=1, sinks=True, leak=1.0, restraint=1.0)
    penalties.held_back(stage, unet, text_BTD, torch.tensor([3, -1]), table_MN).backward()
    attention = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    assert text_BTD.grad is None
    assert attention.to_out[0].weight.grad is None
    assert attention.to_v.weight.grad.abs().sum() > 0


def test_leaks_and_spills_are_told_from_what_belongs() -> None:
    table_MN = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    memory = torch.tensor([0, -1])
    clean = torch.tensor([[5.0, 0, 0, 0], [0, 0, 7.0, 7.0]])
    leaking = torch.tensor([[5.0, 4.0, 0, 0], [0, 0, 7.0, 7.0]])
    spilling = torch.tensor([[5.0, 0, 2.0, 0], [0, 0, 7.0, 7.0]])
    assert penalties.sink_penalty(clean, memory, table_MN) == (0.0, 0.0)
    assert penalties.sink_penalty(leaking, memory, table_MN) == (1.0, 0.0)
    assert penalties.sink_penalty(spilling, memory, table_MN) == (0.0, 1.0)


def test_penalties_count_what_they_say() -> None:
    memorized, lengths = torch.tensor([True, False]), torch.tensor([2.0, 1.0])
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    together = torch.tensor([[1.0, 0.0], [0.5, 0.0]])
    weigh = {"first": 0, "rate": 1.0, "begin": 0, "end": 1}
    assert penalties.sharing_penalty(schedule.Stage(**weigh, sparsity=1.0), apart, lengths, memorized) == pytest.approx(0.75)
    assert penalties.sharing_penalty(schedule.Stage(**weigh, overlap=1.0), apart, lengths, memorized) == pytest.approx(1e-3)
    assert penalties.sharing_penalty(schedule.Stage(**weigh, overlap=1.0), together, lengths, memorized) == pytest.approx(0.7076, abs=1e-3)
    assert penalties.sharing_penalty(schedule.Stage(**weigh, restraint=1.0), together, lengths, memorized) == pytest.approx(1.0)
    assert penalties.sharing_penalty(schedule.Stage(**weigh, intrusion=1.0), apart, lengths, memorized) == 0
    assert penalties.sharing_penalty(schedule.Stage(**weigh, intrusion=1.0), together, lengths, memorized) == pytest.approx(0.5)
    assert penalties.sharing_penalty(schedule.Stage(**weigh, intrusion=1.0), together, lengths, torch.tensor([False, False])) == 0
