"""A graph with a mask as an input, without it: the graph that the same model has where nothing multiplies its values.

Knows operators and names; nothing of weights or of what a mask is for.
"""

from __future__ import annotations

__all__ = ["without_mask"]

from typing import Any

import onnx

from nemo_edge.system.errors import InputError

_SHAPING = ("Slice", "Unsqueeze", "Reshape", "Cast")
"""What cuts a mask into the factors of each layer."""


def without_mask(model: onnx.ModelProto, mask: str) -> onnx.ModelProto:
    """Return a copy of a graph whose input `mask` is gone, with each product of a value and a factor cut from the mask now the value.

    What only the mask needed goes too. Raises `InputError` where anything else is made of the mask, its sizes for one, or it is given out.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph, factors, renamed, kept = copy.graph, {mask}, dict[str, str](), list[onnx.NodeProto]()
    for node in graph.node:
        from_mask = [name in factors for name in node.input]
        if not any(from_mask):
            node.input[:] = [renamed.get(name, name) for name in node.input]
            kept.append(node)
        elif from_mask[0] and node.op_type in _SHAPING and not any(from_mask[1:]):
            factors.update(node.output)
        elif node.op_type == "Mul" and sum(from_mask) == 1:
            value = node.input[from_mask.index(False)]
            renamed[node.output[0]] = renamed.get(value, value)
        else:
            raise InputError(f"{node.op_type} {node.name} of a masked graph takes the mask as more than a factor of a value")
    given_out = next((port.name for port in graph.output if port.name in factors | renamed.keys()), None)
    if given_out is not None:
        raise InputError(f"a masked graph gives out {given_out}, which is of the mask")
    del graph.node[:]
    graph.node.extend(kept)
    _keep(graph.input, {port.name for port in graph.input} - {mask})
    wanted = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
    _keep(graph.initializer, wanted)
    made = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.initializer}
    _keep(graph.value_info, made)
    return copy


def _keep(values: Any, names: set[str]) -> None:
    """Take out of a repeated field, in place, what has another name."""
    kept = [value for value in values if value.name in names]
    del values[:]
    values.extend(kept)
