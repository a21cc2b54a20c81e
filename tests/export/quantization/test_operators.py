"""Which operators of a UNet's graph are quantized."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.export.quantization._operators import SENSITIVE, VALUES, operators
from nemo_edge.export.quantization._rewriting import Chosen, rewrite
from nemo_edge.export.quantization.integers import Int8Weights
from nemo_edge.graph.onnxfile import Graph, open_graph
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.system.errors import InputError


@pytest.fixture(scope="module")
def graph(tiny_bundle: Path) -> Graph:
    return open_graph(tiny_bundle / "unet" / "model.onnx")


def test_convolutions_and_products_are_but_for_value_layers_and_sensitive_parts(graph: Graph, tiny_bundle: Path) -> None:
    chosen, kept = operators(graph, ())
    modules = {o.module for o in chosen}
    assert {"mid_block.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2"} <= modules
    assert {o.kind for o in chosen} == {"Conv", "MatMul"}
    assert not modules & set(kept)
    assert {layer.name for layer in NeuronSet.load(tiny_bundle / "neurons.json").layers} <= {m for m in kept if VALUES in m}
    assert {"conv_in", "conv_out", "time_embedding.linear_1"} <= set(kept)
    assert not any(part in module for part in (VALUES, *SENSITIVE) for module in modules)


def test_both_variants_have_the_same_operators(graph: Graph, tiny_bundle: Path) -> None:
    masked, _ = operators(open_graph(tiny_bundle / "unet_masked" / "model.onnx"), ())
    assert [(o.module, o.kind, o.axis) for o in masked] == [(o.module, o.kind, o.axis) for o in operators(graph, ())[0]]


def test_outputs_of_a_weight_lie_along_its_axis(graph: Graph) -> None:
    chosen, _ = operators(graph, ())
    for o in chosen:
        (weight,) = graph.read([o.weight]).values()
        assert weight.shape[o.axis] == (weight.shape[0] if o.conv else weight.shape[1])


def test_a_recipe_keeps_more(graph: Graph) -> None:
    chosen, kept = operators(graph, ("mid_block.",))
    assert not any(o.module.startswith("mid_block.") for o in chosen)
    assert kept["mid_block.resnets.0.conv1"] == "the recipe keeps it"


def test_a_part_that_no_module_has_is_named(graph: Graph) -> None:
    with pytest.raises(InputError, match=r"quantization\.keep: no module .* has 'middle' in its path; one is [a-z]"):
        operators(graph, ("middle",))


def test_a_quantized_file_is_refused(graph: Graph, tmp_path: Path) -> None:
    chosen, _ = operators(graph, ())
    rewrite(graph, [Chosen(o) for o in chosen], Int8Weights(), None, tmp_path, {})
    with pytest.raises(InputError, match="is quantized already: take the bundle that it was made of"):
        operators(open_graph(tmp_path / "model.onnx"), ())
