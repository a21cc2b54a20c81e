"""A forward that goes on from what was kept gives bit for bit what the whole one gives, on every kind of UNet."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import toy_unet

from nemo_edge.backends.torch import open_runner
from nemo_edge.localization._prefix import Kept, Prefix, answering
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import gate

Feed = dict[str, np.ndarray]


class Stage:
    """A checkpoint's masked UNet, its prefix, and a feed of three rows."""

    def __init__(self, checkpoint: Checkpoint, layers: str = "all") -> None:
        self.checkpoint, self.layers = checkpoint, value_layers(checkpoint.unet, layers)
        component = checkpoint.unet_component()
        self.runner = open_runner(gate(component, checkpoint.unet, self.layers))
        self.feed = component.example(3, seed=1)
        self.prefix = Prefix(checkpoint.unet, [layer.name for layer in self.layers], lambda: open_runner(component)(component.example(1)))

    def mask(self, silenced: dict[int, int], rows: int = 3) -> np.ndarray:
        """Of some layers the first so many neurons silenced, in all rows alike."""
        lists = [range(silenced.get(i, 0)) for i in range(len(self.layers))]
        return np.tile(NeuronSet.from_lists(self.layers, lists).mask(), (rows, 1))

    def run(self, mask: np.ndarray) -> np.ndarray:
        return self.runner({**self.feed, VALUE_MASK: mask})["out_sample"]


@pytest.fixture(params=["toy", "toy_sdxl", "demo_checkpoint"])
def stage(request: pytest.FixtureRequest) -> Stage:
    return Stage(request.getfixturevalue(request.param))


def test_a_resumed_forward_is_the_whole_one_bit_for_bit(stage: Stage) -> None:
    kept = Kept()
    with stage.prefix.keeping(kept):
        stage.run(stage.mask({0: 2}))
    rows = torch.arange(3)
    for layer in range(len(stage.layers)):
        mask = stage.mask({0: 2, layer: 5})
        whole = stage.run(mask)
        start = layer if layer else 0
        with answering(stage.prefix.answers(start, [(kept, rows)])):
            assert np.array_equal(stage.run(mask), whole), stage.layers[layer].name
        assert not np.array_equal(whole, stage.run(stage.mask({0: 2})))


def test_what_is_kept_decides_and_not_the_input(stage: Stage) -> None:
    """At the last layer a changed latent has no way in but through what was kept."""
    kept = Kept()
    with stage.prefix.keeping(kept):
        expected = stage.run(stage.mask({}))
    stage.feed["sample"] = stage.feed["sample"] + 1
    with answering(stage.prefix.answers(len(stage.layers) - 1, [(kept, torch.arange(3))])):
        assert np.array_equal(stage.run(stage.mask({})), expected)
    assert not np.array_equal(stage.run(stage.mask({})), expected)


def test_rows_of_several_forwards_go_on_together(stage: Stage) -> None:
    for name in stage.feed.keys() - {"sample"}:
        stage.feed[name][:] = stage.feed[name][:1]
    first, second = Kept(), Kept()
    with stage.prefix.keeping(first):
        one = stage.run(stage.mask({}))
    stage.feed["sample"] = stage.feed["sample"][::-1].copy() * 0.5
    with stage.prefix.keeping(second):
        other = stage.run(stage.mask({}))
    last = len(stage.layers) - 1
    with answering(stage.prefix.answers(last, [(first, torch.tensor([2])), (second, torch.tensor([0, 1]))])):
        found = stage.run(stage.mask({}))
    np.testing.assert_allclose(found[0], one[2], atol=1e-5)
    np.testing.assert_allclose(found[1:], other[:2], atol=1e-5)


def test_what_was_kept_can_be_joined_and_chosen_from() -> None:
    parts = [
        Kept({"a": torch.arange(2.0), "b": (torch.ones(2, 3), None)}),
        Kept({"a": torch.tensor([5.0]), "b": (torch.zeros(1, 3), None)}),
    ]
    whole = Kept.joined(parts)
    assert whole.outputs["a"].tolist() == [0, 1, 5]
    assert whole.outputs["b"][0].sum() == 6
    assert whole.outputs["b"][1] is None
    some = whole.chosen(torch.tensor([2, 0]))
    assert some.outputs["a"].tolist() == [5, 0]
    assert whole.size_bytes == 4 * (3 + 9)
    assert Kept({"a": whole.outputs["a"], "view": whole.outputs["a"][1:]}).size_bytes == 12


def test_the_more_a_layer_lies_behind_the_less_runs(stage: Stage) -> None:
    ran: list[str] = []
    hooks = [m.register_forward_pre_hook(lambda m, _, n=n: ran.append(n)) for n, m in stage.checkpoint.unet.named_modules()]
    kept, counts = Kept(), []
    with stage.prefix.keeping(kept):
        stage.run(stage.mask({}))
    for layer in range(len(stage.layers)):
        ran.clear()
        with answering(stage.prefix.answers(layer, [(kept, torch.arange(3))])):
            stage.run(stage.mask({}))
        counts.append(len(ran))
    for hook in hooks:
        hook.remove()
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] < counts[0] / 2


def test_a_module_that_runs_twice_is_not_kept() -> None:
    unet = toy_unet()
    twice = unet.down_blocks[0].resnets[1]
    shared = twice.nonlinearity = unet.down_blocks[0].resnets[0].nonlinearity
    example = (torch.zeros(1, 4, 16, 16), torch.tensor([1]), torch.zeros(1, 16, 16))
    prefix = Prefix(unet, [layer.name for layer in value_layers(unet)], lambda: unet(*example))
    names = {name for own in prefix.before for name in own}
    assert next(n for n, m in unet.named_modules() if m is shared) not in names


def test_answers_end_with_their_context() -> None:
    layer = torch.nn.Linear(2, 2)
    before = layer(torch.ones(1, 2))
    with answering({layer: torch.zeros(1, 2)}):
        assert layer(torch.ones(1, 2)).eq(0).all()
    assert layer(torch.ones(1, 2)).equal(before)
    with pytest.raises(RuntimeError, match="mat1 and mat2"), answering({torch.nn.Linear(2, 2): torch.zeros(1, 2)}):
        layer(torch.ones(1, 3))
    assert layer(torch.ones(1, 2)).equal(before)
    assert "forward" not in vars(layer)


def test_an_interrupt_between_two_answers_stays_an_interrupt() -> None:
    layers = [torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)]

    class Interrupted(dict[torch.nn.Module, torch.Tensor]):
        def items(self):  # type: ignore[no-untyped-def,override]
            yield layers[0], torch.zeros(1, 2)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), answering(Interrupted(dict.fromkeys(layers, torch.zeros(1, 2)))):
        pass
    assert not any("forward" in vars(layer) for layer in layers)
