"""The value weights inside an ONNX file: where they lie, neuron by neuron, and a copy of the file with others.

Knows graphs and bytes, whatever the floating-point type; nothing of bundles. Never holds more of a file than the value weights.
Shapes: W neurons of one layer.
"""

from __future__ import annotations

__all__ = [
    "SILENCED_ROWS",
    "VALUE_DATA",
    "Rows",
    "ValueWeights",
    "load_rows",
    "open_value_weights",
    "rows_of",
    "save_rows",
    "silenced_values",
]

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from safetensors import SafetensorError
from safetensors.numpy import load, save

from nemo_edge.graph.onnxfile import Graph
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import write_atomically

SILENCED_ROWS = "silenced_rows.safetensors"
"""File of a bundle that keeps what was baked out of its UNet, so that it can be undone."""

VALUE_DATA = "value_weights.data"
"""File beside the baked graph that holds its value weights, so that other neurons are baked without a copy of all other weights."""

Rows = Mapping[str, np.ndarray]
"""`<layer>.weight` and `<layer>.bias` → a row for each neuron of a set, in its order, in the type of the graph."""

_BFLOAT16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
_CHUNK = 4 << 20

Patches = Sequence[tuple[int, bytes]]
"""Places in a file and what is there in its copy."""


@dataclass(frozen=True)
class _Place:
    """One initializer of a value layer; its neurons run along `axis`."""

    tensor: onnx.TensorProto
    axis: int


@dataclass(frozen=True)
class ValueWeights:
    """The value weights of some layers of an ONNX file."""

    graph: Graph
    values: Rows
    """Of each layer, all its rows [W, …]."""
    _places: Mapping[str, _Place]

    @property
    def data(self) -> tuple[str, ...]:
        """The names of the files beside the graph that hold the weights; none where they are inside of it."""
        found = {_facts(place.tensor)["location"] for place in self._places.values() if _is_external(place.tensor)}
        return tuple(sorted(found))

    def by_name(self) -> dict[str, np.ndarray]:
        """The weights by their names in the graph, as they are in it."""
        return {place.tensor.name: np.moveaxis(self.values[key], 0, place.axis) for key, place in self._places.items()}

    def separate(self, name: str) -> None:
        """Move the weights that lie beside the graph, in place, into a file of their own, which is all that changes with them later.

        Where they were, nothing of them is left.
        """
        folder, offset = self.graph.path.parent, 0
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        inside = {tensor.name: tensor for tensor in model.graph.initializer}
        with (folder / name).open("xb") as own:
            for tensor in (place.tensor for place in self._places.values() if _is_external(place.tensor)):
                content = _content(self.graph.path, tensor)
                own.write(content)
                with (folder / _facts(tensor)["location"]).open("r+b") as file:
                    file.seek(int(_facts(tensor).get("offset", 0)))
                    file.write(bytes(len(content)))
                del inside[tensor.name].external_data[:]
                for key, value in (("location", name), ("offset", offset), ("length", len(content))):
                    inside[tensor.name].external_data.add(key=key, value=str(value))
                offset += len(content)
        if offset:
            write_atomically(self.graph.path, model.SerializeToString())
        else:
            (folder / name).unlink()

    def write(self, values: Rows, folder: Path, metadata: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Write the graph, and the files beside it that hold value weights, with other weights and `metadata_props` of those names.

        `folder` may hold other names of the files that are read, which stay as they are. Return the sha256 of each file
        beside the graph, of the one that was read and of the one that was written.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        inside = {tensor.name: tensor for tensor in model.graph.initializer}
        patches: dict[str, list[tuple[int, bytes]]] = {name: [] for name in self.data}
        for key, place in self._places.items():
            content = np.ascontiguousarray(np.moveaxis(values[key], 0, place.axis)).tobytes()
            if _is_external(place.tensor):
                facts = _facts(place.tensor)
                patches[facts["location"]].append((int(facts.get("offset", 0)), content))
            else:
                _replace(inside[place.tensor.name], content)
        for entry in model.metadata_props:
            entry.value = metadata.get(entry.key, entry.value)
        hashes = {name: _copy(self.graph.path.parent / name, folder / name, sorted(found)) for name, found in patches.items()}
        write_atomically(folder / self.graph.path.name, model.SerializeToString())
        return hashes


def open_value_weights(graph: Graph, layers: Sequence[ValueLayer]) -> ValueWeights:
    """Read the value weights of a graph. Raises `InputError` where they are not there, or are not theirs alone."""
    tensors = {tensor.name: tensor for tensor in graph.model.graph.initializer}
    places: dict[str, _Place] = {}
    for layer, names in zip(layers, graph.weights([layer.name for layer in layers]).values(), strict=True):
        for name in names:
            users = [node for node in graph.model.graph.node if name in node.input]
            axis = _axis(users[0], name) if len(users) == 1 else None
            key = f"{layer.name}.{'weight' if len(tensors[name].dims) == 2 else 'bias'}"
            if axis is None or key in places or tensors[name].dims[axis] != layer.width:
                raise InputError(
                    f"{graph.path} has no weights that belong to {layer.name} alone: the exporter merged them with others that "
                    "are equal, as of small layers that are silenced whole; build the bundle again with the other neurons"
                )
            places[key] = _Place(tensors[name], axis)
    return ValueWeights(graph, {key: np.moveaxis(_read(graph, place.tensor), place.axis, 0) for key, place in places.items()}, places)


def rows_of(values: Rows, neurons: NeuronSet) -> Rows:
    """Return the rows of a set's neurons; layers without any are left out."""
    chosen = {f"{layer.name}.{kind}": list(rows) for layer, rows in neurons.items() if rows for kind in ("weight", "bias")}
    return {key: values[key][rows] for key, rows in chosen.items() if key in values}


def silenced_values(values: Rows, neurons: NeuronSet) -> Rows:
    """Return a copy of all rows in which those of a set's neurons are zero."""
    whole = {key: np.array(rows) for key, rows in values.items()}
    for layer, rows in neurons.items():
        for key in (f"{layer.name}.weight", f"{layer.name}.bias"):
            if key in whole:
                whole[key][list(rows)] = 0
    return whole


def save_rows(path: Path, rows: Rows) -> None:
    """Write rows as safetensors, atomically; the same rows give the same bytes. bfloat16, which numpy lacks, is written as its bits."""
    plain = {key: np.ascontiguousarray(rows[key]) for key in sorted(rows)}
    write_atomically(path, save({key: value.view(np.uint16) if value.dtype == _BFLOAT16 else value for key, value in plain.items()}))


def load_rows(path: Path) -> Rows:
    """Read what `save_rows` writes. Raises `InputError` for any other file."""
    try:
        found = load(path.read_bytes())
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{path} does not hold value weights: {error}") from error
    return {key: value.view(_BFLOAT16) if value.dtype == np.uint16 else value for key, value in found.items()}


def _axis(node: onnx.NodeProto, name: str) -> int | None:
    """Along which axis of an operator's initializer the neurons are; None for an operator that is not a projection's."""
    index = list(node.input).index(name)
    flags = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Gemm" and index > 0:
        return 1 if index == 1 and not ("transB" in flags and flags["transB"].i) else 0
    if node.op_type == "Transpose":
        return 0 if list(flags["perm"].ints) == [1, 0] else None
    return {("MatMul", 1): 1, ("Add", 0): 0, ("Add", 1): 0}.get((node.op_type, index))


def _read(graph: Graph, tensor: onnx.TensorProto) -> np.ndarray:
    if not _is_external(tensor):
        inside: np.ndarray = onnx.numpy_helper.to_array(tensor)
        return inside
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    return np.frombuffer(_content(graph.path, tensor), dtype).reshape(tuple(tensor.dims))


def _content(graph: Path, tensor: onnx.TensorProto) -> bytes:
    """The bytes of an initializer beside a graph, without onnx's own reader, which refuses files of two names."""
    facts, dtype = _facts(tensor), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    size = int(np.prod(tensor.dims)) * dtype.itemsize
    try:
        with (graph.parent / facts["location"]).open("rb") as file:
            file.seek(int(facts.get("offset", 0)))
            content = file.read(size)
    except OSError as error:
        raise InputError(f"the weights of {graph} cannot be read: {error.strerror}") from error
    if len(content) != size:
        raise InputError(f"{facts['location']} of {graph} ends before the weights {tensor.name}: build the bundle again")
    return content


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _facts(tensor: onnx.TensorProto) -> dict[str, str]:
    """Where an initializer lies. Raises `InputError` for a file that is not right beside the graph."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    if Path(facts["location"]).name != facts["location"]:
        raise InputError(f"the weights {tensor.name} lie in {facts['location']}, which is not beside the graph: build the bundle again")
    return facts


def _replace(tensor: onnx.TensorProto, content: bytes) -> None:
    """Give an initializer inside of a graph other values."""
    for field in ("float_data", "int32_data"):
        tensor.ClearField(field)
    tensor.raw_data = content


def _copy(source: Path, target: Path, patches: Patches) -> tuple[str, str]:
    """Copy a file with some bytes replaced, in one pass; return the sha256 of both."""
    before, after, start = hashlib.sha256(), hashlib.sha256(), 0
    target.unlink(missing_ok=True)  # it may be another name of the source
    view = memoryview(bytearray(_CHUNK))
    with source.open("rb", buffering=0) as reader, target.open("xb", buffering=0) as writer:
        while count := reader.readinto(view):
            before.update(view[:count])
            for offset, content in patches:
                low, high = max(offset, start), min(offset + len(content), start + count)
                if low < high:
                    view[low - start : high - start] = content[low - offset : high - offset]
            after.update(view[:count])
            writer.write(view[:count])
            start += count
    return before.hexdigest(), after.hexdigest()
