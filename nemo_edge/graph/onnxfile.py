"""What is inside an ONNX file of ours: which module of the checkpoint a tensor comes from, and the weights of the value layers.

Reads graphs, never runs them. The exporter writes the path of the PyTorch module into every node (`pkg.torch.onnx.name_scopes`).
"""

from __future__ import annotations

__all__ = ["SCOPES", "Graph", "Place", "Port", "module_path", "open_graph"]

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_tensor

from nemo_edge.graph.agreement import Dtype
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.files import sha256_file, sha256_json
from nemo_edge.system.reading import check_regular

SCOPES = "pkg.torch.onnx.name_scopes"
"""Where an operator says in which modules it is: the one note of the exporter's that a file of ours keeps."""
_NO_SCOPE = "_empty_nn_module_stack_from_metadata_hook"
"""What torch.export names the scope of a node that is inside of no module."""
_WRAPPERS = (("module",), ("graph",), ("unet", "encoder", "vae"))
"""Attributes of the export's own wrappers, which lead a path one after the other and are not of the checkpoint's module."""

_DTYPES: dict[Dtype, int] = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


@dataclass(frozen=True)
class Place:
    """Where in a graph a tensor is made: its name, the operator, and the module whose last operator it is."""

    tensor: str
    operator: str
    module: str


@dataclass(frozen=True)
class Port:
    """An input or output: its type in numpy's words, and its dimensions, each a number or a name for any."""

    dtype: str
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class Graph:
    """An ONNX file without its weights."""

    path: Path
    model: onnx.ModelProto

    @property
    def rounds(self) -> bool:
        """Whether activations are rounded, so that what is multiplied are integers."""
        return any(node.op_type == "QuantizeLinear" for node in self.model.graph.node)

    def places(self) -> tuple[Place, ...]:
        """Return where each tensor is made that an operator writes, in the order in which they run."""
        return tuple(Place(node.output[0], node.op_type, _module(node)) for node in self.model.graph.node if node.output and node.output[0])

    def modules(self) -> dict[str, Place]:
        """Return the last tensor made inside each module of the checkpoint, by the module's path, in the order in which they end.

        Sizes, which the exporter takes from a module's output within the module, are not counted.
        """
        last: dict[str, tuple[int, onnx.NodeProto]] = {}
        for index, node in enumerate(self.model.graph.node):
            for path in _paths(node) if node.output[0] not in self._sizes else ():
                last[path] = (index, node)
        ordered = sorted(last.items(), key=lambda item: (item[1][0], -len(item[0])))
        return {path: Place(node.output[0], node.op_type, path) for path, (_, node) in ordered if path}

    def modules_of_nodes(self) -> dict[str, str]:
        """Return the path of the checkpoint's module that each operator is of, by the operator's name and by those of what it makes."""
        return {name: _module(node) for node in self.model.graph.node for name in (node.name, *node.output)}

    def before(self, tensor: str, stops: Collection[str]) -> set[str]:
        """Return which of `stops` a tensor is made from, going back no further than each of them."""
        found: set[str] = set()
        seen, waiting = {tensor}, list(self._inputs.get(tensor, ()))
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in stops:
                found.add(name)
            else:
                waiting += self._inputs.get(name, ())
        return found

    @cached_property
    def _inputs(self) -> dict[str, tuple[str, ...]]:
        """The inputs of the operator that makes each tensor."""
        return {name: tuple(node.input) for node in self.model.graph.node for name in node.output}

    @cached_property
    def _sizes(self) -> set[str]:
        """Tensors that are made from shapes and constants alone."""
        given = {port.name for port in self.model.graph.input}.union(*(node.output for node in self.model.graph.node))
        found: set[str] = set()
        for node in self.model.graph.node:
            if node.op_type == "Shape" or given.intersection(node.input) <= found:
                found.update(node.output)
        return found

    def weights(self, modules: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the names of the initializers that each of `modules` uses, in the order of their use.

        Raises `InputError` for a module that the graph does not have.
        """
        initializers = {tensor.name for tensor in self.model.graph.initializer}
        found: dict[str, list[str]] = {module: [] for module in modules}
        for node in self.model.graph.node:
            for module in found.keys() & set(_paths(node)):
                found[module] += [name for name in node.input if name in initializers]
        missing = next((module for module, names in found.items() if not names), None)
        if missing:
            raise InputError(f"{self.path} has no weights of {missing}: it is not an export of this model by nemo-edge")
        return {module: tuple(names) for module, names in found.items()}

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Read initializers, external data included."""
        wanted = {tensor.name: tensor for tensor in self.model.graph.initializer if tensor.name in set(names)}
        found = {}
        for name in names:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(wanted[name])
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                load_external_data_for_tensor(tensor, str(self.path.parent))
                tensor.data_location = onnx.TensorProto.DEFAULT  # else older releases of onnx look for the file once more, here
            found[name] = onnx.numpy_helper.to_array(tensor)
        return found

    def ports(self) -> tuple[dict[str, Port], dict[str, Port]]:
        """Return the type in numpy's words and the dimensions (a number, or a name for any) of each input and each output."""
        weights = {tensor.name for tensor in self.model.graph.initializer}
        inputs = {value.name: _port(value) for value in self.model.graph.input if value.name not in weights}
        return inputs, {value.name: _port(value) for value in self.model.graph.output}

    def dtype(self) -> Dtype:
        """Return the type of the weights: that of most of their numbers, since a few small ones are float32 in any graph."""
        numbers: Counter[int] = Counter()
        for tensor in self.model.graph.initializer:
            numbers[tensor.data_type] += prod(tensor.dims)
        return max(_DTYPES, key=lambda dtype: numbers[_DTYPES[dtype]])

    def external_files(self) -> dict[Path, int]:
        """Return the files that hold the weights, and how many bytes the graph reads of each."""
        found: dict[Path, int] = {}
        for tensor in self.model.graph.initializer:
            if tensor.data_location == onnx.TensorProto.EXTERNAL:
                where = {entry.key: entry.value for entry in tensor.external_data}
                path = self.path.parent / where["location"]
                found[path] = max(found.get(path, 0), int(where.get("offset", 0)) + int(where.get("length", 0)))
        return found

    def locations(self) -> frozenset[str]:
        """Return where external data lies, as the file says it: of weights, and of tensors in nodes, subgraphs and functions."""
        nodes = (node for function in self.model.functions for node in function.node)
        defaults = (onnx.NodeProto(attribute=function.attribute_proto) for function in self.model.functions)
        training = (graph for info in self.model.training_info for graph in (info.initialization, info.algorithm))
        graphs = (tensor for graph in (self.model.graph, *training) for tensor in _tensors(graph))
        tensors = (*graphs, *(tensor for node in (*nodes, *defaults) for tensor in _tensors_of(node)))
        entries = (entry for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL for entry in tensor.external_data)
        return frozenset(entry.value for entry in entries if entry.key == "location")

    def check_files(self) -> None:
        """Raise `InputError` unless the files that hold the weights are there and long enough."""
        for path, needed in self.external_files().items():
            if not path.is_file():
                raise InputError(f"{path}, the weights of {self.path}, does not exist: export it again")
            if path.stat().st_size < needed:
                raise InputError(f"{path} has {path.stat().st_size} bytes, but {self.path} reads {needed} of it: export it again")

    def content_hash(self) -> str:
        """Return one hash of the file and of the files that hold its weights."""
        files = [self.path, *sorted(self.external_files())]
        return sha256_json({path.name: sha256_file(path) for path in files})

    def marked(self, tensor: str) -> bytes:
        """Return the graph, its weights still beside the file, with `tensor` as one more output."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        if tensor not in {output.name for output in model.graph.output}:
            model.graph.output.append(onnx.ValueInfoProto(name=tensor))
        serialized: bytes = model.SerializeToString()
        return serialized


def open_graph(path: Path) -> Graph:
    """Read an ONNX file without its weights. Raises `InputError` for anything else."""
    check_regular(path)
    try:
        return Graph(path, onnx.load(str(path), load_external_data=False))
    except Exception as error:  # protobuf and onnx raise errors of several unrelated classes
        raise InputError(f"{path} is not an ONNX file: {first_line(error)}") from error


def module_path(scope: str) -> str:
    """Return the path of a module in the checkpoint's own, from its path in what was exported."""
    parts = scope.split(".")
    for names in _WRAPPERS:
        parts = parts[1:] if parts and parts[0] in names else parts
    return ".".join(parts)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from (tensor for sparse in graph.sparse_initializer for tensor in (sparse.values, sparse.indices))
    yield from (tensor for node in graph.node for tensor in _tensors_of(node))


def _tensors_of(node: onnx.NodeProto) -> Iterator[onnx.TensorProto]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        yield from (part for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors) for part in (sparse.values, sparse.indices))
        yield from (tensor for graph in (attribute.g, *attribute.graphs) for tensor in _tensors(graph))


def _port(value: onnx.ValueInfoProto) -> Port:
    kind = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in kind.shape.dim)
    return Port(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name, dims)


def _paths(node: onnx.NodeProto) -> tuple[str, ...]:
    """The paths, in the checkpoint's module, of the modules a node is inside of; the empty path is the module itself."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), None)
    if scopes is None:
        return ()
    inside = ast.literal_eval(scopes)[:-1]  # the last one is the name of the operation itself
    return tuple(dict.fromkeys(module_path(scope) for scope in inside if scope != _NO_SCOPE))


def _module(node: onnx.NodeProto) -> str:
    paths = _paths(node)
    return paths[-1] if paths else ""
