"""Value weights in ONNX files as exporters write them: found, read, moved and changed bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import VALUE_DATA, load_rows, open_value_weights, rows_of, save_rows
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file

LAYERS = (ValueLayer(name="down.attn2.to_v", width=6), ValueLayer(name="mid.attn2.to_v", width=6))
CHOSEN = NeuronSet.from_lists(LAYERS, [[0, 5], [3]])
TYPES = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def numbers(kind: int, *shape: int) -> np.ndarray:
    seed = sum(shape)
    found: np.ndarray = np.random.default_rng(seed).standard_normal(shape).astype(helper.tensor_dtype_to_np_dtype(kind))
    return found


def node(operator: str, inputs: list[str], output: str, layer: str, **attributes: object) -> onnx.NodeProto:
    made = helper.make_node(operator, inputs, [output], **attributes)
    made.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=repr(["", f"module.{layer}", "linear"]))
    return made


def save_graph(folder: Path, kind: int, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], external: bool = True) -> Path:
    ports = [helper.make_tensor_value_info(name, kind, ["rows", 4]) for name in "xy"]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.metadata_props.add(key="nemo_edge.neurons", value="former")
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=external, location="model.onnx.data", size_threshold=0)
    return folder / "model.onnx"


@pytest.fixture(params=["matmul", "gemm", "gemm transposed", "transpose"])
def projected(request: pytest.FixtureRequest) -> Callable[..., tuple[list[onnx.NodeProto], dict[str, np.ndarray]]]:
    """Two projections as exporters write them, a bias in the first; and other weights before and after."""

    def make(kind: int) -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
        down, mid = (layer.name for layer in LAYERS)
        rows = {down: numbers(kind, 6, 4), mid: numbers(kind, 6, 4) + numbers(kind, 6, 1)}
        weights, nodes = {"ahead": numbers(kind, 4, 9)}, []
        for place, (layer, value) in enumerate(rows.items()):
            stored = value if request.param in ("gemm transposed", "transpose") else np.ascontiguousarray(value.T)
            weights[f"w{place}"] = stored
            if request.param.startswith("gemm"):
                flag = int(request.param.endswith("transposed"))
                nodes.append(node("Gemm", ["x", f"w{place}", *(["b"] if place == 0 else [])], f"v{place}", layer, transB=flag))
                continue
            operand = f"w{place}"
            if request.param == "transpose":
                nodes.append(node("Transpose", [operand], f"t{place}", layer, perm=[1, 0]))
                operand = f"t{place}"
            nodes.append(node("MatMul", ["x", operand], f"v{place}", layer))
            nodes += [node("Add", [f"v{place}", "b"], f"s{place}", layer)] if place == 0 else []
        weights |= {"b": numbers(kind, 6), "after": numbers(kind, 4, 3)}
        return nodes, weights

    return make


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("external", [True, False])
def test_rows_are_read_and_written_whatever_the_operator_and_the_type(
    tmp_path: Path, projected: Callable[..., tuple[list[onnx.NodeProto], dict[str, np.ndarray]]], name: str, external: bool
) -> None:
    nodes, stored = projected(TYPES[name])
    path = save_graph(tmp_path / "old", TYPES[name], nodes, stored, external)
    weights = open_value_weights(open_graph(path), LAYERS)
    down, mid = (layer.name for layer in LAYERS)
    assert list(weights.values) == [f"{down}.weight", f"{down}.bias", f"{mid}.weight"]
    assert weights.values[f"{down}.weight"].tobytes() == numbers(TYPES[name], 6, 4).tobytes()
    assert weights.data == (("model.onnx.data",) if external else ())
    changed = {key: np.array(value) for key, value in weights.values.items()}
    for key, rows in ((f"{down}.weight", [0, 5]), (f"{down}.bias", [0, 5]), (f"{mid}.weight", [3])):
        changed[key][rows] = 0
    (tmp_path / "new").mkdir()
    hashes = weights.write(changed, tmp_path / "new", {"nemo_edge.neurons": "newer"})
    assert hashes == (
        {p.name: (sha256_file(p), sha256_file(tmp_path / "new" / p.name)) for p in [path.with_name("model.onnx.data")]} if external else {}
    )
    again = onnx.load(str(tmp_path / "new" / "model.onnx"))
    assert {entry.key: entry.value for entry in again.metadata_props} == {"nemo_edge.neurons": "newer"}
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in again.graph.initializer}
    for key in ("ahead", "after"):
        assert found[key].tobytes() == stored[key].tobytes()
    read = open_value_weights(open_graph(tmp_path / "new" / "model.onnx"), LAYERS).values
    assert {key: value.tobytes() for key, value in read.items()} == {key: value.tobytes() for key, value in changed.items()}
    assert not any(rows.any() for rows in rows_of(read, CHOSEN).values())


@pytest.mark.parametrize("name", TYPES)
def test_rows_that_are_kept_are_the_same_bits(tmp_path: Path, name: str) -> None:
    rows = {"a.weight": numbers(TYPES[name], 3, 5), "a.bias": numbers(TYPES[name], 3), "b.weight": numbers(TYPES[name], 2, 0)}
    save_rows(tmp_path / "rows", rows)
    found = load_rows(tmp_path / "rows")
    assert {key: (v.dtype, v.shape, v.tobytes()) for key, v in found.items()} == {
        key: (v.dtype, v.shape, v.tobytes()) for key, v in rows.items()
    }
    save_rows(tmp_path / "again", dict(reversed(found.items())))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "rows").read_bytes()


def test_a_file_that_holds_no_rows_is_refused(written: Callable[[str, str], Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not hold value weights"):
        load_rows(written("rows", "no"))
    with pytest.raises(InputError, match="does not hold value weights"):
        load_rows(tmp_path / "absent")


def one_layer(folder: Path, **changes: object) -> Path:
    layer, value = LAYERS[0].name, numbers(TensorProto.FLOAT, 4, 6)
    nodes = [node("MatMul", ["x", "w"], "v", layer), node("MatMul", ["x", "w"], "u", LAYERS[1].name)]
    return save_graph(folder, TensorProto.FLOAT, nodes[: 1 + bool(changes.get("shared"))], {"w": value, "c": value})


def test_weights_that_move_into_a_file_of_their_own_leave_nothing_behind(tmp_path: Path) -> None:
    path = one_layer(tmp_path)
    before, size = open_value_weights(open_graph(path), LAYERS[:1]), path.with_name("model.onnx.data").stat().st_size
    before.separate(VALUE_DATA)
    after = open_value_weights(open_graph(path), LAYERS[:1])
    assert after.data == (VALUE_DATA,)
    assert (tmp_path / VALUE_DATA).read_bytes() == numbers(TensorProto.FLOAT, 4, 6).tobytes()
    assert after.values[f"{LAYERS[0].name}.weight"].tobytes() == before.values[f"{LAYERS[0].name}.weight"].tobytes()
    rest = path.with_name("model.onnx.data").read_bytes()
    assert (len(rest), rest.count(numbers(TensorProto.FLOAT, 4, 6).tobytes())) == (size, 1)  # the other initializer's
    assert numpy_helper.to_array(onnx.load(str(path)).graph.initializer[0]).tobytes() == numbers(TensorProto.FLOAT, 4, 6).tobytes()


def test_weights_that_others_share_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights that belong to down\.attn2\.to_v alone.*merged them with others"):
        open_value_weights(open_graph(one_layer(tmp_path, shared=True)), LAYERS)


def test_a_layer_of_another_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no weights that belong to down\.attn2\.to_v alone"):
        open_value_weights(open_graph(one_layer(tmp_path)), [ValueLayer(name=LAYERS[0].name, width=4)])


@pytest.mark.parametrize(("location", "why"), [("../model.onnx.data", "not beside the graph"), ("absent", "cannot be read")])
def test_a_file_that_is_not_beside_the_graph_is_not_read(tmp_path: Path, location: str, why: str) -> None:
    path = one_layer(tmp_path / "unet")
    (tmp_path / "model.onnx.data").write_bytes(bytes(4096))
    model = onnx.load(str(path), load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=why):
        open_value_weights(open_graph(path), LAYERS[:1])


def test_a_file_that_was_cut_off_is_told(tmp_path: Path) -> None:
    path = one_layer(tmp_path)
    path.with_name("model.onnx.data").write_bytes(bytes(10))
    with pytest.raises(InputError, match="ends before the weights"):
        open_value_weights(open_graph(path), LAYERS[:1])
