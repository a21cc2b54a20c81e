"""A masked graph without its mask does what it does under a mask of ones; one that takes the mask for more is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nemo_edge.graph.unmasking import without_mask
from nemo_edge.system.errors import InputError

FACTORS = [
    helper.make_node("Slice", ["mask", "zero", "two", "one"], ["cut"]),
    helper.make_node("Unsqueeze", ["cut", "one"], ["factor"]),
]
"""Two columns of the mask, for every token."""
NUMBERS = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}


def model_of(*nodes: onnx.NodeProto, outputs: Sequence[str] = ("y",)) -> onnx.ModelProto:
    """A graph of `x` [B, 3, 2] and a mask [B, 4]."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", ["B", 3, 2]), ("mask", ["B", 4]))]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 3, 2]) for name in outputs]
    weights = [numpy_helper.from_array(value, name) for name, value in NUMBERS.items()]
    graph = helper.make_graph([*FACTORS, *nodes], "masked", inputs, made, weights)
    graph.value_info.append(helper.make_tensor_value_info("cut", TensorProto.FLOAT, ["B", 2]))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def run(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, feed)[0]
    return found


@pytest.mark.parametrize("order", [["x", "factor"], ["factor", "x"]])
def test_the_product_is_its_value_and_nothing_of_the_mask_is_left(order: list[str]) -> None:
    after = helper.make_node("Mul", ["product", "product"], ["y"])
    model = model_of(helper.make_node("Mul", order, ["product"]), after)
    before, plain = model.SerializeToString(), without_mask(model, "mask")
    x = np.random.default_rng(0).standard_normal((2, 3, 2), np.float32)
    assert np.array_equal(run(plain, x=x), run(model, x=x, mask=np.ones((2, 4), np.float32)))
    assert [node.op_type for node in plain.graph.node] == ["Mul"]
    assert ([port.name for port in plain.graph.input], len(plain.graph.initializer), len(plain.graph.value_info)) == (["x"], 0, 0)
    assert model.SerializeToString() == before, "the given graph was changed"


def test_products_one_after_the_other_are_the_first_value() -> None:
    nodes = [helper.make_node("Mul", pair, [out]) for pair, out in ((["x", "factor"], "a"), (["a", "factor"], "b"))]
    plain = without_mask(model_of(*nodes, helper.make_node("Abs", ["b"], ["y"])), "mask")
    assert [list(node.input) for node in plain.graph.node] == [["x"]]


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Add", ["x", "factor"], ["y"])],
        [helper.make_node("Shape", ["mask"], ["rows"]), helper.make_node("Mul", ["x", "factor"], ["y"])],
        [helper.make_node("Mul", ["factor", "factor"], ["square"]), helper.make_node("Mul", ["x", "square"], ["y"])],
    ],
    ids=["added", "its rows counted", "squared"],
)
def test_a_mask_that_is_more_than_a_factor_is_refused(nodes: list[onnx.NodeProto]) -> None:
    with pytest.raises(InputError, match="takes the mask as more than a factor of a value"):
        without_mask(model_of(*nodes), "mask")


def test_a_mask_whose_product_is_given_out_is_refused() -> None:
    with pytest.raises(InputError, match="gives out"):
        without_mask(model_of(helper.make_node("Mul", ["x", "factor"], ["y"])), "mask")
