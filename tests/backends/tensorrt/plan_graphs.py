"""Small ONNX files for TensorRT's tests: convolutions, an attention over other tokens, a mask, free or pinned sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

KINDS = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
BORDERS = {**KINDS, "bf16": TensorProto.FLOAT}
"""Of inputs and outputs, as an export has them."""
FREE = ("batch", 4, "height", "width")
WIDTH, HEADS, TOKENS = 32, 2, 8


def save_attention_graph(path: Path, dtype: str = "fp16", dims: Sequence[int | str] = FREE, layers: int = 1) -> Path:
    """sample [B, 4, H, W], states [B, 8, 32], value_mask [B, 32] → out_sample [B, 4, H, W], its weights in a file beside it."""
    kind, border, rng, rows = KINDS[dtype], BORDERS[dtype], np.random.default_rng(0), dims[0]
    numpy = helper.tensor_dtype_to_np_dtype(kind)
    weights: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def weight(name: str, *shape: int) -> str:
        weights.append(numpy_helper.from_array((rng.standard_normal(shape) / 8).astype(numpy), name))
        return name

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    weights += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("flat", [0, WIDTH, -1]), ("one", [1]))]
    sample, states, mask = ("sample", "states", "value_mask")
    if kind != border:
        sample, states, mask = (add("Cast", [name], f"{name}_in", to=kind) for name in (sample, states, mask))
    x = add("Conv", [sample, weight("conv_in", WIDTH, 4, 3, 3)], "h0", pads=[1, 1, 1, 1])
    for i in range(layers):
        hidden = add("Conv", [x, weight(f"conv{i}", WIDTH, WIDTH, 3, 3)], f"conv{i}_out", pads=[1, 1, 1, 1])
        size = add("Shape", [hidden], f"size{i}")
        query = add("Transpose", [add("Reshape", [hidden, "flat"], f"flat{i}")], f"query{i}", perm=[0, 2, 1])
        key = add("MatMul", [states, weight(f"to_k{i}", WIDTH, WIDTH)], f"key{i}")
        value = add("MatMul", [states, weight(f"to_v{i}", WIDTH, WIDTH)], f"value{i}")
        masked = add("Mul", [value, add("Unsqueeze", [mask, "one"], f"mask{i}")], f"masked{i}")
        mixed = add("Attention", [query, key, masked], f"mixed{i}", q_num_heads=HEADS, kv_num_heads=HEADS)
        back = add("Transpose", [mixed], f"back{i}", perm=[0, 2, 1])
        x = add("Add", [hidden, add("Reshape", [back, size], f"picture{i}")], f"h{i + 1}")
    last = "out_sample" if kind == border else "out"
    add("Conv", [x, weight("conv_out", 4, WIDTH, 3, 3)], last, pads=[1, 1, 1, 1])
    if kind != border:
        add("Cast", [last], "out_sample", to=border)
    shapes = {"sample": dims, "states": (rows, TOKENS, WIDTH), "value_mask": (rows, WIDTH)}
    inputs = [helper.make_tensor_value_info(name, border, list(shape)) for name, shape in shapes.items()]
    outputs = [helper.make_tensor_value_info("out_sample", border, list(dims))]
    model = helper.make_model(
        helper.make_graph(nodes, "attention", inputs, outputs, weights), opset_imports=[helper.make_opsetid("", 23)], ir_version=10
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path), save_as_external_data=True, location=f"{path.name}.data", size_threshold=1024)
    return path


def shapes(rows: Sequence[int] = (1, 2, 8), size: Sequence[int] = (8, 8, 16)) -> dict[str, tuple[tuple[int, ...], ...]]:
    """A profile of that graph: least, most usual and greatest rows and latents."""
    return {
        "sample": tuple((r, 4, s, s) for r, s in zip(rows, size, strict=True)),
        "states": tuple((r, TOKENS, WIDTH) for r in rows),
        "value_mask": tuple((r, WIDTH) for r in rows),
    }
