"""A quantized file for TensorRT: float16 but for the time step, activations signed; weights and scales are those of the file for CPUs.

Converted by ONNX Runtime's own tool, which casts where types meet.
"""

from __future__ import annotations

__all__ = ["for_tensorrt", "is_quantized", "write_half"]

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from nemo_edge.graph.agreement import Dtype
from nemo_edge.graph.onnxfile import Graph

_EXACT = ("timestep", "time_ids")
"""Inputs that are float32 in any file, since float16 and bfloat16 round them."""
_LEARNED = ("Conv", "Gemm", "MatMul", "DequantizeLinear", "QuantizeLinear")


def is_quantized(graph: Graph) -> bool:
    """Whether a file of ours has rounded weights."""
    return any(node.op_type == "DequantizeLinear" for node in graph.model.graph.node)


@contextmanager
def for_tensorrt(graph: Graph, dtype: Dtype, folder: Path) -> Iterator[tuple[Path | None, Dtype]]:
    """What TensorRT compiles of a bundle's file, and its type: of a quantized one its float16 form, in `folder` until the context is left;
    None where it is the file itself."""
    if not is_quantized(graph):
        yield None, dtype
        return
    with TemporaryDirectory(dir=folder, prefix=".half") as temporary:
        yield write_half(graph.path, Path(temporary)), "fp16"


def write_half(source: Path, folder: Path) -> Path:
    """Write `folder/model.onnx` of a quantized file, weights beside it, and return its path."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.UINT8:  # the zero of activations
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), np.int8), tensor.name))
    ports = {port.name for port in model.graph.input}
    exact = [name for name in _EXACT if name in ports]
    blocked = [node.name for node in _times(model, set(exact))]
    half = convert_float_to_float16(model, keep_io_types=exact, disable_shape_infer=True, node_block_list=blocked)
    once = {node.SerializeToString(): node for node in half.graph.node}  # a constant of two blocked operators is cast twice, by one name
    half.graph.ClearField("node")
    half.graph.node.extend(once.values())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.onnx"
    onnx.save(half, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=1024)
    return path


def _times(model: onnx.ModelProto, exact: set[str]) -> list[NodeProto]:
    """The operators that make features of the time step, up to the first with weights."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found, made = [], set(exact)
    for node in model.graph.node:
        if node.op_type == "Constant":
            constants.update(node.output)
        elif made.intersection(node.input) and node.op_type not in _LEARNED:
            found.append(node)
            made.update(node.output)
    return found
