"""Three ways to take neurons out, bit for bit the same in eager float32, and the same as the official code's hook."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from conftest import toy_unet
from torch import Tensor, nn

from nemo_edge.backends.torch import open_runner
from nemo_edge.model.checkpoint import Checkpoint, value_layers, value_projections
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.model.surgery import bake_, gate, masked, silenced
from nemo_edge.system.errors import InputError

BATCH = 3


@pytest.fixture(params=["sd", "sdxl"])
def checkpoint(request: pytest.FixtureRequest, toy: Checkpoint, toy_sdxl: Checkpoint) -> Checkpoint:
    return toy if request.param == "sd" else toy_sdxl


def some(unet: nn.Module, layers: str = "paper") -> NeuronSet:
    """A third of each layer's neurons, but none of the first layer's."""
    found = value_layers(unet, layers)  # type: ignore[arg-type]
    return NeuronSet.from_lists(found, [[], *(range(0, layer.width, 3) for layer in found[1:])])


def feed(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    return checkpoint.unet_component().example(BATCH)


def run(checkpoint: Checkpoint) -> np.ndarray:
    return open_runner(checkpoint.unet_component())(feed(checkpoint))["out_sample"]


def run_masked(checkpoint: Checkpoint, mask_BN: np.ndarray, layers: tuple[ValueLayer, ...]) -> np.ndarray:
    gated = gate(checkpoint.unet_component(), checkpoint.unet, layers)
    return open_runner(gated)({**feed(checkpoint), VALUE_MASK: mask_BN})["out_sample"]


def run_hooked(checkpoint: Checkpoint, neurons: NeuronSet) -> np.ndarray:
    """The official code's way: a forward hook that multiplies the neurons' outputs by 0."""

    def hook(rows: tuple[int, ...]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def silence(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            output[:, :, list(rows)] *= 0
            return output

        return silence

    handles = [checkpoint.unet.get_submodule(layer.name).register_forward_hook(hook(rows)) for layer, rows in neurons.items()]
    try:
        return run(checkpoint)
    finally:
        for handle in handles:
            handle.remove()


def hooks(unet: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in unet.modules())


def weights(unet: nn.Module) -> Mapping[str, Tensor]:
    return {name: tensor.clone() for name, tensor in unet.state_dict().items()}


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("layers", ["paper", "all"])
def test_silenced_baked_gated_and_hooked_are_bit_identical(checkpoint: Checkpoint, layers: str) -> None:
    neurons = some(checkpoint.unet, layers)
    expected = run_hooked(checkpoint, neurons)
    assert not np.array_equal(expected, run(checkpoint))
    with silenced(checkpoint.unet, neurons):
        assert np.array_equal(run(checkpoint), expected)
    mask_BN = np.repeat(neurons.mask()[None], BATCH, axis=0)
    assert np.array_equal(run_masked(checkpoint, mask_BN, neurons.layers), expected)
    unet = copy.deepcopy(checkpoint.unet)
    assert bake_(unet, neurons) is unet
    example = feed(checkpoint)
    module = copy.copy(checkpoint.unet_component().module)
    module._modules = {"unet": unet}
    with torch.no_grad():
        baked = module(*(torch.from_numpy(example[port.name]) for port in checkpoint.unet_component().inputs))[0]
    assert np.array_equal(baked.numpy(), expected)


def test_silenced_restores_the_weights_exactly(checkpoint: Checkpoint) -> None:
    before = weights(checkpoint.unet)
    with silenced(checkpoint.unet, some(checkpoint.unet)) as unet:
        assert unet is checkpoint.unet
        assert not same(weights(unet), before)
    assert same(weights(checkpoint.unet), before)


def test_silenced_restores_the_weights_when_an_exception_leaves_it(toy: Checkpoint) -> None:
    before = weights(toy.unet)
    with pytest.raises(ZeroDivisionError), silenced(toy.unet, some(toy.unet)):
        raise ZeroDivisionError
    assert same(weights(toy.unet), before)


def test_silenced_contexts_nest(toy: Checkpoint) -> None:
    before, neurons = weights(toy.unet), some(toy.unet)
    with silenced(toy.unet, neurons):
        outer = weights(toy.unet)
        with silenced(toy.unet, neurons.random_like(0) | neurons):
            assert not same(weights(toy.unet), outer)
        assert same(weights(toy.unet), outer)
    assert same(weights(toy.unet), before)


def test_bake_zeroes_the_neurons_rows_and_nothing_else() -> None:
    unet = toy_unet()
    before, neurons = weights(unet), some(unet, "all")
    bake_(unet, neurons)
    for layer, rows in neurons.items():
        expected = before[f"{layer.name}.weight"].clone()
        expected[list(rows)] = 0
        assert torch.equal(unet.get_submodule(layer.name).weight, expected)
    touched = {f"{layer.name}.weight" for layer in neurons.layers}
    rest = {name: tensor for name, tensor in before.items() if name not in touched}
    assert same({n: t for n, t in unet.state_dict().items() if n not in touched}, rest)


def test_the_empty_set_changes_nothing(toy: Checkpoint) -> None:
    untouched = run(toy)
    with silenced(toy.unet, NeuronSet.empty(value_layers(toy.unet))):
        assert np.array_equal(run(toy), untouched)


def test_a_mask_of_ones_is_the_untouched_unet_bit_for_bit(checkpoint: Checkpoint) -> None:
    layers = value_layers(checkpoint.unet)
    ones_BN = np.ones((BATCH, sum(layer.width for layer in layers)), np.float32)
    assert np.array_equal(run_masked(checkpoint, ones_BN, layers), run(checkpoint))


def test_each_row_of_the_mask_acts_on_its_row_only(checkpoint: Checkpoint) -> None:
    neurons = some(checkpoint.unet)
    with silenced(checkpoint.unet, neurons):
        silent = run(checkpoint)
    ones = np.ones(neurons.total, np.float32)
    got = run_masked(checkpoint, np.stack([ones, neurons.mask(), ones]), neurons.layers)
    expected = run(checkpoint)
    assert not np.array_equal(expected[1], silent[1])
    expected[1] = silent[1]
    assert np.array_equal(got, expected)


def test_gate_leaves_no_hooks_and_the_unet_as_it_was(toy: Checkpoint) -> None:
    before, untouched, neurons = weights(toy.unet), run(toy), some(toy.unet)
    run_masked(toy, np.repeat(neurons.mask()[None], BATCH, axis=0), neurons.layers)
    assert hooks(toy.unet) == 0
    assert same(weights(toy.unet), before)
    assert np.array_equal(run(toy), untouched)


def test_gate_leaves_no_hooks_when_the_forward_fails(toy: Checkpoint) -> None:
    layers = value_layers(toy.unet)
    gated = gate(toy.unet_component(), toy.unet, layers)
    example = [torch.from_numpy(gated.example(2)[port.name]) for port in gated.inputs]
    example[2] = example[2][:, :, :5]
    with pytest.raises(RuntimeError):
        gated.module(*example)
    assert hooks(toy.unet) == 0


def test_gate_adds_one_input_and_no_parameters(toy: Checkpoint) -> None:
    component, layers = toy.unet_component(), value_layers(toy.unet)
    gated = gate(component, toy.unet, layers)
    assert gated.inputs[:-1] == component.inputs
    assert (gated.inputs[-1].name, gated.inputs[-1].dims) == (VALUE_MASK, ("batch", 80))
    assert len(list(gated.module.parameters())) == len(list(component.module.parameters()))


@pytest.mark.parametrize("act", [bake_, lambda unet, neurons: silenced(unet, neurons).__enter__()])
def test_a_set_of_another_model_is_refused_and_nothing_changed(act: Callable[[nn.Module, NeuronSet], object]) -> None:
    unet = toy_unet()
    before, layers = weights(unet), value_layers(unet)
    wider = NeuronSet.from_lists([*layers[:-1], ValueLayer(name=layers[-1].name, width=32)], [[0]] * 7)
    with pytest.raises(InputError, match=r"has 16 neurons in this UNet, but 32"):
        act(unet, wider)
    elsewhere = NeuronSet.from_lists([*layers[:-1], ValueLayer(name="mid_block.nowhere.attn2.to_v", width=16)], [[0]] * 7)
    with pytest.raises(InputError, match=r"no value layer mid_block\.nowhere\.attn2\.to_v: the neurons belong to another model"):
        act(unet, elsewhere)
    assert same(weights(unet), before)


def test_gate_refuses_the_layers_of_another_model(toy: Checkpoint, toy_sdxl: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"another model"):
        gate(toy.unet_component(), toy.unet, value_layers(toy_sdxl.unet))


def test_a_bias_is_silenced_and_restored_too() -> None:
    unet = toy_unet()
    for name, linear in value_projections(unet):
        parent = unet.get_submodule(name.rpartition(".")[0])
        parent.to_v = nn.Linear(linear.in_features, linear.out_features, bias=True).requires_grad_(False)
    before, neurons = weights(unet), some(unet)
    x_BTD = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    with silenced(unet, neurons):
        for layer, rows in neurons.items():
            value_BTW = unet.get_submodule(layer.name)(x_BTD)
            assert (value_BTW[:, :, list(rows)] == 0).all()
            assert (value_BTW[:, :, [i for i in range(layer.width) if i not in rows]] != 0).all()
    assert same(weights(unet), before)


def test_a_mask_of_another_width_is_refused(toy: Checkpoint) -> None:
    projections = [linear for _, linear in value_projections(toy.unet)]
    with pytest.raises(InputError, match="belongs to another model"), masked(projections, torch.ones(1, 5)):
        pass
