"""Eager PyTorch behind the one calling convention."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from nemo_edge.backends.torch import available, describe, open_runner
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.surgery import gate
from nemo_edge.system.errors import InputError


def test_it_gives_the_modules_outputs_by_name(toy: Checkpoint) -> None:
    component = toy.text_component(0)
    feed = component.example(2)
    with open_runner(component) as runner:
        got = runner(feed)
    expected = toy.text_encoders[0](torch.from_numpy(feed["input_ids"]))
    assert list(got) == ["last_hidden_state", "pooler_output"]
    assert np.array_equal(got["last_hidden_state"], expected.last_hidden_state.detach().numpy())
    assert np.array_equal(got["pooler_output"], expected.pooler_output.detach().numpy())


def test_the_order_of_the_feed_does_not_matter(toy: Checkpoint) -> None:
    runner, feed = open_runner(toy.unet_component()), toy.unet_component().example(2)
    turned = dict(reversed(feed.items()))
    assert np.array_equal(runner(feed)["out_sample"], runner(turned)["out_sample"])


def test_it_takes_any_float_and_gives_float32(toy: Checkpoint) -> None:
    component = toy.vae_component()
    half = replace(component, module=copy.deepcopy(component.module).half())
    feed = component.example(1)
    got = open_runner(half)({"latent_sample": feed["latent_sample"].astype(np.float64)})["sample"]
    assert got.dtype == np.float32
    assert np.abs(got - open_runner(component)(feed)["sample"]).max() < 2e-2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("time", [981.0, 960.5])
def test_a_time_step_is_not_rounded_to_the_type_of_the_weights(toy: Checkpoint, dtype: torch.dtype, time: float) -> None:
    """What diffusers' own pipeline gets of a UNet of that type; bfloat16 itself has no 981 between 980 and 984."""
    component = toy.unet_component()
    unet = copy.deepcopy(toy.unet).to(dtype)
    low = replace(component, module=type(component.module)(unet))
    feed = {**component.example(1), "timestep": np.full(1, time, np.float32)}
    sample, text = (torch.from_numpy(feed[name]).to(dtype) for name in ("sample", "encoder_hidden_states"))
    with torch.no_grad():
        expected = unet(sample, torch.tensor(time), text).sample.float().numpy()
    assert np.array_equal(open_runner(low)(feed)["out_sample"], expected)
    rounded = {**feed, "timestep": torch.tensor([time]).to(dtype).float().numpy()}
    assert np.array_equal(rounded["timestep"], feed["timestep"]) or not np.array_equal(open_runner(low)(rounded)["out_sample"], expected)


def test_it_refuses_what_does_not_fit(toy: Checkpoint) -> None:
    gated = gate(toy.unet_component(), toy.unet, value_layers(toy.unet))
    runner, feed = open_runner(gated), gated.example(2)
    assert runner.inputs[VALUE_MASK] == ("batch", 80)
    with pytest.raises(InputError, match=r"lacks 'timestep'"):
        runner({name: array for name, array in feed.items() if name != "timestep"})
    with pytest.raises(InputError, match=r"expected \[batch, 80\]"):
        runner({**feed, VALUE_MASK: feed[VALUE_MASK][:, 1:]})
    with pytest.raises(InputError, match=r"factors from 0 to 1"):
        runner({**feed, VALUE_MASK: feed[VALUE_MASK] * np.float32(np.nan)})


def test_it_describes_itself() -> None:
    assert available()[0] == "cpu"
    assert describe()["version"] == torch.__version__
