"""A fault that is put into a graph is found where it was put."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nemo_edge.measure.divergence import Divergence, EagerProbe, GraphProbe, first_divergence, first_not_finite
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, value_layers
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced

TOLERANCE = 1e-4
Feed = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def checkpoint(tiny_recipe: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_recipe.parent / "model"))


@pytest.fixture(scope="module")
def feed() -> Feed:
    rng = np.random.default_rng(0)
    made = {"sample": rng.standard_normal((2, 4, 16, 16), np.float32), "timestep": np.array([961, 961], np.float32)}
    return {**made, "encoder_hidden_states": rng.standard_normal((2, 16, 16), np.float32)}


@pytest.fixture(scope="module")
def ones() -> Feed:
    return {VALUE_MASK: np.ones((2, 16), np.float32)}


@pytest.fixture
def edited(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """The masked graph with one value of a weight changed; more of them, when it is called again."""

    def edit(module: str, value: float) -> Path:
        folder = tmp_path / "edited"
        if not folder.exists():
            shutil.copytree(tiny_bundle / "unet_masked", folder)
        probe = GraphProbe(folder / "model.onnx", {})
        name = probe.graph.weights([module])[module][0]
        model = onnx.load(str(folder / "model.onnx"))
        (tensor,) = [t for t in model.graph.initializer if t.name == name]
        changed = numpy_helper.to_array(tensor).copy()
        changed.flat[0] += value
        tensor.CopyFrom(numpy_helper.from_array(changed, name))
        onnx.save(model, str(folder / "model.onnx"))
        return Path(folder / "model.onnx")

    return edit


def diverging(checkpoint: Checkpoint, model: Path, feed: Feed, mask: Feed) -> Divergence | None:
    eager, graph = EagerProbe(checkpoint.unet_component(), feed), GraphProbe(model, {**feed, **mask}, threads=1)
    return first_divergence("unet", eager, graph, TOLERANCE)


def test_a_graph_that_agrees_has_no_bad_tensor(checkpoint: Checkpoint, tiny_bundle: Path, feed: Feed, ones: Feed) -> None:
    model = tiny_bundle / "unet_masked" / "model.onnx"
    assert diverging(checkpoint, model, feed, ones) is None
    assert first_not_finite("unet", GraphProbe(model, {**feed, **ones}, threads=1)) is None


ATTENTION = "mid_block.attentions.0.transformer_blocks.0"


@pytest.mark.parametrize(
    ("module", "operator"),
    [
        ("conv_in", "Conv"),
        ("time_embedding.linear_2", "Gemm"),
        ("down_blocks.0.resnets.0.time_emb_proj", "Gemm"),
        ("down_blocks.0.downsamplers.0.conv", "Conv"),  # sizes are taken from its output
        (f"{ATTENTION}.attn2.to_v", "Mul"),  # by the mask
        (f"{ATTENTION}.attn2.to_out.0", "Add"),
        ("up_blocks.1.resnets.0.time_emb_proj", "Gemm"),  # a side branch, late in the graph
        ("conv_out", "Conv"),
    ],
)
def test_a_changed_weight_is_located_at_its_module(
    checkpoint: Checkpoint, edited: Callable[..., Path], feed: Feed, ones: Feed, module: str, operator: str
) -> None:
    found = diverging(checkpoint, edited(module, 1.0), feed, ones)
    assert found is not None
    assert (found.component, found.module, found.operator, found.finite) == ("unet", module, operator, True)
    assert found.error is not None
    assert found.error > TOLERANCE
    assert 0 <= found.place < found.candidates
    assert found.probes < found.candidates / 2  # bisected, and not looked at one after the other


def test_a_neuron_silenced_in_eager_alone_is_located_at_its_layer(
    checkpoint: Checkpoint, tiny_bundle: Path, feed: Feed, ones: dict
) -> None:
    layers = value_layers(checkpoint.unet)
    for index, layer in enumerate(layers):
        with silenced(checkpoint.unet, NeuronSet.from_lists(layers, [[3] if i == index else [] for i in range(len(layers))])):
            found = diverging(checkpoint, tiny_bundle / "unet_masked" / "model.onnx", feed, ones)
        assert found is not None
        assert found.module == layer.name


def test_the_first_of_two_faults_is_found(checkpoint: Checkpoint, edited: Callable[..., Path], feed: Feed, ones: Feed) -> None:
    for module in ("conv_out", "conv_in", "mid_block.resnets.0.conv1"):
        edited(module, 1.0)
    found = diverging(checkpoint, edited("conv_in", 1.0), feed, ones)
    assert found is not None
    assert found.module == "conv_in"


def test_the_tolerance_decides(checkpoint: Checkpoint, edited: Callable[..., Path], feed: Feed, ones: Feed) -> None:
    eager, graph = EagerProbe(checkpoint.unet_component(), feed), GraphProbe(edited("conv_out", 0.01), {**feed, **ones}, threads=1)
    strict = first_divergence("unet", eager, graph, TOLERANCE)
    assert strict is not None
    assert strict.error is not None
    assert first_divergence("unet", eager, graph, strict.error) is None
    assert first_divergence("unet", eager, graph, strict.error * 0.99) is not None


@pytest.mark.parametrize(
    ("module", "value"),
    [("conv_in", np.inf), ("time_embedding.linear_1", np.nan), (f"{ATTENTION}.attn2.to_v", np.nan), ("conv_out", np.inf)],
)
def test_a_nan_is_located_at_the_first_tensor_that_holds_it(
    edited: Callable[..., Path], feed: Feed, ones: Feed, module: str, value: float
) -> None:
    found = first_not_finite("unet", GraphProbe(edited(module, value), {**feed, **ones}, threads=1))
    assert found is not None
    assert (found.module, found.finite, found.error) == (module, False, None)
    assert Divergence.model_validate_json(found.model_dump_json()) == found


def test_a_nan_is_a_divergence_too(checkpoint: Checkpoint, edited: Callable[..., Path], feed: Feed, ones: Feed) -> None:
    found = diverging(checkpoint, edited("conv_in", np.nan), feed, ones)
    assert found is not None
    assert (found.module, found.finite) == ("conv_in", False)
    assert str(found.error) == "nan"


def test_an_overflow_is_located_where_it_happens(edited: Callable[..., Path], feed: Feed, ones: Feed) -> None:
    found = first_not_finite("unet", GraphProbe(edited("mid_block.resnets.0.conv1", 3e38), {**feed, **ones}, threads=1))
    assert found is not None
    assert found.module == "mid_block.resnets.0.conv1"


def test_probes_see_the_same_outputs(checkpoint: Checkpoint, tiny_bundle: Path, feed: Feed, ones: Feed) -> None:
    eager = EagerProbe(checkpoint.unet_component(), feed)
    graph = GraphProbe(tiny_bundle / "unet_masked" / "model.onnx", {**feed, **ones}, threads=1)
    for module in ("conv_in", "mid_block", f"{ATTENTION}.attn2.to_v", "down_blocks.0", "conv_out"):
        assert module in eager.modules()
        assert module in graph.modules()
        np.testing.assert_allclose(graph(module), eager(module), atol=1e-4)


def test_a_probe_leaves_no_hook(checkpoint: Checkpoint, feed: Feed) -> None:
    eager = EagerProbe(checkpoint.unet_component(), feed)
    eager("mid_block")
    eager.modules()
    assert not any(m._forward_hooks for m in checkpoint.unet.modules())


def test_weights_may_be_given_for_those_of_the_file(checkpoint: Checkpoint, edited: Callable[..., Path], feed: Feed, ones: Feed) -> None:
    layer = f"{ATTENTION}.attn2.to_v"
    edited(layer, 1.0)
    model = edited("conv_out", 1.0)
    names = GraphProbe(model, {}).graph.weights([layer, "conv_out"])
    right = {names[layer][0]: checkpoint.unet.get_submodule(layer).weight.numpy().T}
    right[names["conv_out"][0]] = checkpoint.unet.conv_out.weight.numpy()  # ONNX Runtime lays it out anew when it opens the graph
    eager = EagerProbe(checkpoint.unet_component(), feed)
    assert first_divergence("unet", eager, GraphProbe(model, {**feed, **ones}, threads=1), TOLERANCE) is not None
    assert first_divergence("unet", eager, GraphProbe(model, {**feed, **ones}, threads=1, weights=right), TOLERANCE) is None
