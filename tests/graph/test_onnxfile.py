"""What is read out of an exported graph is what the checkpoint has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner, open_runner
from nemo_edge.graph.onnxfile import Graph, Place, Port, module_path, open_graph
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, value_layers
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.system.errors import InputError

VARIANTS = ["unet", "unet_masked"]


@pytest.fixture(scope="module")
def checkpoint(tiny_recipe: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_recipe.parent / "model"))


@pytest.fixture(scope="module")
def graphs(tiny_bundle: Path) -> dict[str, Graph]:
    return {name: open_graph(tiny_bundle / name / "model.onnx") for name in VARIANTS}


def feed(masked: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {"sample": rng.standard_normal((2, 4, 16, 16), np.float32), "timestep": np.array([961, 1], np.float32)}
    made["encoder_hidden_states"] = rng.standard_normal((2, 16, 16), np.float32)
    return {**made, VALUE_MASK: np.ones((2, 16), np.float32)} if masked else made


@pytest.mark.parametrize("name", VARIANTS)
def test_module_paths_are_the_checkpoint_s(checkpoint: Checkpoint, graphs: dict[str, Graph], name: str) -> None:
    theirs, ours = {n for n, _ in checkpoint.unet.named_modules()}, set(graphs[name].modules())
    assert ours <= theirs
    computing = {n for n, m in checkpoint.unet.named_modules() if n and list(m.parameters(recurse=False))}
    assert len(computing) > 100
    assert computing <= ours


@pytest.mark.parametrize("component", ["text_encoder", "vae_decoder"])
def test_the_other_components_have_the_checkpoint_s_paths_too(checkpoint: Checkpoint, tiny_bundle: Path, component: str) -> None:
    names = {n for m in (*checkpoint.text_encoders, checkpoint.vae) for n, _ in m.named_modules()}
    names |= {n.removeprefix("text_model.") for n in names}
    found = open_graph(tiny_bundle / component / "model.onnx").modules()
    assert found
    assert set(found) <= names


def test_modules_end_in_the_order_of_the_graph_the_innermost_first(graphs: dict[str, Graph]) -> None:
    modules, order = list(graphs["unet"].modules()), {p.tensor: i for i, p in enumerate(graphs["unet"].places())}
    ends = [order[place.tensor] for place in graphs["unet"].modules().values()]
    assert ends == sorted(ends)
    for inner in modules:
        for outer in [m for m in modules if inner.startswith(f"{m}.")]:
            assert modules.index(inner) < modules.index(outer)


def test_a_module_ends_in_its_output_and_not_in_a_size_taken_from_it(checkpoint: Checkpoint, graphs: dict[str, Graph]) -> None:
    modules = graphs["unet"].modules()
    assert modules["down_blocks.0.downsamplers.0.conv"].operator == "Conv"
    assert modules["conv_out"].tensor == graphs["unet"].model.graph.output[0].name
    kinds = {n: p.operator for n, p in modules.items() if isinstance(checkpoint.unet.get_submodule(n), torch.nn.Conv2d)}
    assert len(kinds) > 10
    assert set(kinds.values()) == {"Conv"}


def test_value_weights_of_the_masked_graph_are_the_checkpoint_s(checkpoint: Checkpoint, graphs: dict[str, Graph]) -> None:
    graph, layers = graphs["unet_masked"], [layer.name for layer in value_layers(checkpoint.unet)]
    names = graph.weights(layers)
    assert list(names) == layers
    for layer, (name,) in names.items():
        assert np.array_equal(graph.read([name])[name], checkpoint.unet.get_submodule(layer).weight.numpy().T), layer


def test_value_weights_of_the_baked_graph_are_zero_at_the_neurons(
    checkpoint: Checkpoint, graphs: dict[str, Graph], tiny_bundle: Path
) -> None:
    graph, neurons = graphs["unet"], NeuronSet.load(tiny_bundle / "neurons.json")
    assert len(neurons)
    for layer, chosen in neurons.items():
        (name,) = graph.weights([layer.name])[layer.name]
        expected = checkpoint.unet.get_submodule(layer.name).weight.numpy().T.copy()
        expected[:, list(chosen)] = 0
        assert np.array_equal(graph.read([name])[name], expected)


def test_weights_come_in_the_order_of_their_use(checkpoint: Checkpoint, graphs: dict[str, Graph]) -> None:
    weight, bias = graphs["unet"].weights(["conv_in"])["conv_in"]
    found = graphs["unet"].read([bias, weight])
    assert list(found) == [bias, weight]
    assert np.array_equal(found[weight], checkpoint.unet.conv_in.weight.numpy())
    assert np.array_equal(found[bias], checkpoint.unet.conv_in.bias.numpy())


def test_a_module_that_the_graph_lacks_is_refused(graphs: dict[str, Graph]) -> None:
    with pytest.raises(InputError, match=r"has no weights of mid_block\.none: it is not an export of this model by nemo-edge"):
        graphs["unet"].weights(["conv_in", "mid_block.none"])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_marked_tensor_is_one_more_output_and_runs(graphs: dict[str, Graph], name: str) -> None:
    graph, given = graphs[name], feed(name == "unet_masked")
    place = graph.modules()["mid_block"]
    before = graph.model.SerializeToString()
    with open_runner(graph.path, threads=1) as runner:
        expected = runner(given)
    with OnnxRuntimeRunner(graph.path, threads=1, graph=graph.marked(place.tensor)) as runner:
        got = runner(given)
    assert got.keys() - expected.keys() == {place.tensor}
    assert got[place.tensor].shape == (2, 8, 8, 8)
    np.testing.assert_allclose(got["out_sample"], expected["out_sample"], atol=1e-5)
    assert graph.model.SerializeToString() == before


def test_marking_an_output_changes_nothing(graphs: dict[str, Graph]) -> None:
    assert onnx.ModelProto.FromString(graphs["unet"].marked("out_sample")) == graphs["unet"].model


def test_before_goes_back_to_the_stops_and_no_further() -> None:
    edges = [("x", "a"), ("a", "b"), ("b", "c"), ("c", "d")]
    nodes = [helper.make_node("Neg", [i], [o]) for i, o in edges] + [helper.make_node("Add", ["d", "a"], ["e"])]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xe"]
    graph = Graph(Path("g"), helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:])))
    assert graph.before("e", {"b", "a"}) == {"b", "a"}  # a directly too
    assert graph.before("d", {"b", "a"}) == {"b"}
    assert graph.before("b", {"b", "c"}) == set()
    assert graph.places()[0] == Place("a", "Neg", "")


def test_sizes_are_no_outputs() -> None:
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    nodes = [
        helper.make_node("Neg", ["x"], ["y"]),
        helper.make_node("Shape", ["y"], ["shape"]),
        helper.make_node("Add", ["shape", "one"], ["larger"]),
        helper.make_node("Constant", [], ["two"], value=one),
        helper.make_node("Mul", ["larger", "two"], ["doubled"]),
    ]
    for node in nodes:
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value="['', 'unet', 'unet.block', 'op']")
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = Graph(Path("g"), helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:], [one])))
    assert {path: place.tensor for path, place in graph.modules().items()} == {"block": "y"}


@pytest.mark.parametrize(
    ("scope", "path"),
    [
        ("", ""),
        ("module", ""),
        ("module.graph.unet", ""),
        ("module.graph.unet.mid_block.attentions.0", "mid_block.attentions.0"),
        ("unet.conv_in", "conv_in"),
        ("graph.vae.decoder.conv_in", "decoder.conv_in"),
        ("encoder.encoder.layers.0", "encoder.layers.0"),  # the wrapper of a text encoder, and its own module
        ("mid_block.unet", "mid_block.unet"),
    ],
)
def test_the_wrappers_are_no_part_of_a_path(scope: str, path: str) -> None:
    assert module_path(scope) == path


@pytest.mark.parametrize("content", [b"not a graph", None])
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, written: Callable[[str, bytes], Path], content: bytes | None) -> None:
    path = tmp_path / "none.onnx" if content is None else written("x.onnx", content)
    with pytest.raises(InputError, match=r"\.onnx (is not an ONNX file|does not exist): ") as refused:
        open_graph(path)
    assert "\n" not in str(refused.value)


def test_ports_are_the_graphs_inputs_and_outputs(graphs: dict[str, Graph]) -> None:
    inputs, outputs = graphs["unet_masked"].ports()
    assert inputs["sample"] == Port("float32", ("batch", 4, "height", "width"))
    assert inputs["timestep"] == Port("float32", ("batch",))
    assert inputs[VALUE_MASK] == Port("float32", ("batch", 16))
    assert outputs == {"out_sample": Port("float32", ("batch", 4, "height", "width"))}


def copied(graph: Graph, folder: Path) -> tuple[Graph, Path]:
    """Return a copy of `graph` in `folder`, and the file there that holds most of its weights."""
    for path in graph.path.parent.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return open_graph(folder / graph.path.name), folder / "model.onnx.data"


def test_the_files_of_the_weights_are_known_and_must_be_whole(graphs: dict[str, Graph], tmp_path: Path) -> None:
    graph, weights = copied(graphs["unet"], tmp_path)
    graph.check_files()
    assert set(graph.external_files()) == set(tmp_path.glob("*.data"))
    needed = graph.external_files()[weights]
    assert needed <= weights.stat().st_size
    weights.write_bytes(weights.read_bytes()[: needed - 1])
    with pytest.raises(InputError, match=rf"has {needed - 1} bytes, but .* reads {needed} of it"):
        graph.check_files()
    weights.unlink()
    with pytest.raises(InputError, match="does not exist: export it again"):
        graph.check_files()


def test_an_edit_of_the_weights_changes_the_hash(graphs: dict[str, Graph], tmp_path: Path) -> None:
    graph, weights = copied(graphs["unet"], tmp_path)
    assert graph.content_hash() == graphs["unet"].content_hash()
    changed = bytearray(weights.read_bytes())
    changed[100] ^= 1
    weights.write_bytes(bytes(changed))
    assert graph.content_hash() != graphs["unet"].content_hash()
