"""A graph with rounded weights, and with activations rounded where they enter an operator (and where they leave a convolution).

Reads a weight at a time and writes it before the next, so that a file of any size takes the memory of its largest weight.
"""

from __future__ import annotations

__all__ = ["DATA", "Chosen", "rewrite"]

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from nemo_edge.export.quantization._operators import Operator
from nemo_edge.export.quantization.base import Activation, Packed, Scheme, as_half
from nemo_edge.graph.onnxfile import Graph
from nemo_edge.system.files import write_atomically

DATA = "model.onnx.data"
_INSIDE = 1024
"""Bytes up to which a tensor is in the graph itself."""
_ALIGNED = 64


@dataclass(frozen=True)
class Chosen:
    """An operator, and where the ranges of its input and output end; None where activations stay as they are."""

    operator: Operator
    input_limit: float | None = None
    output_limit: float | None = None


def rewrite(
    graph: Graph, chosen: Sequence[Chosen], scheme: Scheme, activation: Activation | None, folder: Path, facts: Mapping[str, str]
) -> dict[str, float]:
    """Write `folder/model.onnx`, weights beside it, with the `chosen` operators quantized; `facts` become `metadata_props` of those names.

    Return by how much each module's weight changed, relative to its size.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    by_node, by_weight = {each.operator.node: each for each in chosen}, {each.operator.weight: each.operator for each in chosen}
    errors: dict[str, float] = {}
    with closing(_Data(folder / DATA)) as data:
        written, scales = [], dict[str, Packed]()
        for tensor in graph.model.graph.initializer:
            operator, (array,) = by_weight.get(tensor.name), graph.read([tensor.name]).values()
            if operator is None:
                written.append(data.put(tensor.name, tensor.data_type, tuple(tensor.dims), np.ascontiguousarray(array).tobytes()))
                continue
            packed = scheme.pack(array.astype(np.float32, copy=False), operator)
            errors[operator.module], scales[tensor.name] = packed.error, packed
            written.append(data.put(tensor.name, packed.onnx_type, packed.shape, packed.content))
        placing = _Placing(activation, scales)
        nodes = [node for old in graph.model.graph.node for node in placing.around(old, by_node.get(old.name))]
        written += [data.put_array(name, array, kind) for name, (array, kind) in placing.constants.items()]
    for name, value in facts.items():
        _set(model, f"nemo_edge.{name}", value)
    known = [value for value in model.graph.value_info if value.name not in by_weight]  # of float32, which weights are no more
    for field, values in (("node", nodes), ("initializer", written), ("value_info", known)):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(values)
    write_atomically(folder / "model.onnx", model.SerializeToString())
    return errors


class _Data:
    """The file of weights beside a graph, written from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self._name, self._file = path.name, path.open("xb")

    def put(self, name: str, onnx_type: int, shape: tuple[int, ...], content: bytes) -> TensorProto:
        """Append a tensor, or keep a small one; return how the graph has it."""
        tensor = TensorProto(name=name, data_type=onnx_type, dims=shape)
        if len(content) <= _INSIDE:
            tensor.raw_data = content
            return tensor
        self._file.write(bytes(-self._file.tell() % _ALIGNED))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", self._name), ("offset", self._file.tell()), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        self._file.write(content)
        return tensor

    def put_array(self, name: str, array: np.ndarray, onnx_type: int) -> TensorProto:
        """The same of numbers, in a type that numpy has or of 8 bits."""
        return self.put(name, onnx_type, array.shape, np.ascontiguousarray(array).tobytes())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Placing:
    """The nodes that round, around those of the graph."""

    def __init__(self, activation: Activation | None, weights: Mapping[str, Packed]) -> None:
        self.constants: dict[str, tuple[np.ndarray, int]] = {}
        self._activation, self._weights = activation, weights
        self._rounded: set[str] = set()

    def around(self, old: NodeProto, chosen: Chosen | None) -> Iterator[NodeProto]:
        """Yield the nodes that a node becomes."""
        node = NodeProto()
        node.CopyFrom(old)
        if chosen is None:
            yield node
            return
        yield self._weight(node)
        if self._activation is None or chosen.input_limit is None:
            yield node
            return
        source = node.input[0]
        if source not in self._rounded:  # what a convolution gives is rounded already
            rounded = f"{source}_rounded"
            if rounded not in self._rounded:
                yield from self._pair(node, source, rounded, chosen.input_limit)
            node.input[0] = rounded
        output = node.output[0]
        if chosen.output_limit is not None:
            node.output[0] = f"{output}_exact"
            yield node
            yield from self._pair(node, node.output[0], output, chosen.output_limit)
        else:
            yield node

    def _weight(self, node: NodeProto) -> NodeProto:
        name, packed = node.input[1], self._weights[node.input[1]]
        self.constants[f"{name}_scale"] = packed.scales.astype(np.float32), TensorProto.FLOAT
        inputs = [name, f"{name}_scale"]
        if self._activation is not None:  # ONNX Runtime's kernels of integers ask for it
            self.constants[f"{name}_zero"] = np.zeros(packed.scales.shape, np.int8), packed.onnx_type
            inputs.append(f"{name}_zero")
        node.input[1] = f"{name}_rounded"
        return _like(node, helper.make_node("DequantizeLinear", inputs, [node.input[1]], f"{name}_dequantize", **packed.attributes))

    def _pair(self, node: NodeProto, source: str, target: str, limit: float) -> Iterator[NodeProto]:
        assert self._activation is not None
        self._rounded.add(target)
        activation, quantized = self._activation, f"{source}_quantized"
        scale, zero = f"{target}_scale", f"zero_of_{activation.onnx_type}"
        self.constants[scale] = as_half(np.asarray(limit / activation.levels)), TensorProto.FLOAT
        self.constants[zero] = np.asarray(activation.zero, np.uint8), activation.onnx_type
        yield _like(node, helper.make_node("QuantizeLinear", [source, scale, zero], [quantized], f"{target}_quantize"))
        yield _like(node, helper.make_node("DequantizeLinear", [quantized, scale, zero], [target], f"{target}_dequantize"))


def _like(node: NodeProto, made: NodeProto) -> NodeProto:
    """Of the same module."""
    made.metadata_props.extend(node.metadata_props)
    return made


def _set(model: onnx.ModelProto, key: str, value: str) -> None:
    for entry in model.metadata_props:
        if entry.key == key:
            entry.value = value
            return
    model.metadata_props.add(key=key, value=value)
