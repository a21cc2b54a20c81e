"""An interrupted training goes on as if it had not been, and a new beginning is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from nemo_edge.demo.trainer import Trainer


def trainer(warm_up: int = 0) -> Trainer:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    text = CLIPTextConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    return Trainer(unet, CLIPTextModel(text), lambda step: 1e-2 / (1 + step), seed=1, warm_up=warm_up)


def train(one: Trainer, steps: int) -> None:
    for _ in range(steps):
        x = torch.randn(2, 4, 8, 8, generator=one.rng)
        text = one.model["text_encoder"](torch.tensor([[1, 2, 19], [3, 4, 19]])).last_hidden_state
        one.update(one.model["unet"](x, torch.tensor([5, 500]), text).sample.square().mean())


def test_an_interrupted_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = trainer(), trainer(), trainer()
    train(whole, 5)
    train(first, 3)
    first.save(tmp_path / "training.pt")
    second.load(tmp_path / "training.pt")
    train(second, 2)
    assert second.step == whole.step == 5
    for key, value in whole.average.items():
        assert torch.equal(value, second.average[key]), key


def test_a_new_beginning_has_the_averaged_weights_as_shipped_and_warms_up() -> None:
    one = trainer(warm_up=4)
    train(one, 6)
    one.begin()
    assert one.begun == 6
    for key, value in one.model.state_dict().items():
        assert torch.equal(value, value.half().float() if value.is_floating_point() else value), key
    assert not one.optimizer.state
    rates = []
    for _ in range(5):
        train(one, 1)
        rates.append(one.optimizer.param_groups[0]["lr"] * one.step / 1e-2)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1])
