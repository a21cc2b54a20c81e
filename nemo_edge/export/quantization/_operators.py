"""Which operators of a graph are quantized: convolutions and products with weights, but for those that suffer most from it.

Knows the graph and its modules; neither ranges nor types.
"""

from __future__ import annotations

__all__ = ["SENSITIVE", "VALUES", "Operator", "operators"]

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import NodeProto

from nemo_edge.graph.onnxfile import Graph
from nemo_edge.system.errors import InputError

SENSITIVE = (
    "time_emb_proj",
    "time_embedding",
    "conv_in",
    "conv_out",
    "conv_shortcut",
    "add_embedding",
    "pos_embed",
    "time_text_embed",
    "context_embedder",
    "norm_out",
    "x_embedder",
)
"""Parts of the paths of modules that ModelOpt's recipes for diffusion models leave as they are (NVIDIA/Model-Optimizer,
examples/diffusers/quantization/utils.py)."""
VALUES = ".attn2.to_v"
"""The layers that hold memorization neurons: a hundredth of the weights. As they stay, a silenced row is zero to the bit, other neurons
can be baked into a quantized file, and a mask multiplies what nobody rounds."""
_WEIGHTED = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Operator:
    """A convolution or a product with weights."""

    module: str
    """The path in the checkpoint of the module that it is."""
    node: str
    kind: str
    weight: str
    axis: int
    """Of the weight: along which the outputs lie."""
    input: str
    output: str

    @property
    def conv(self) -> bool:
        """Whether it is a convolution, which runs on integers only where its output is rounded, too."""
        return self.kind == "Conv"


def operators(graph: Graph, keep: Sequence[str]) -> tuple[list[Operator], dict[str, str]]:
    """Return what is quantized, in the order in which it runs, and why which module is not.

    Raises `InputError` for a graph that is quantized already, and for parts of `keep` that no module has.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.model.graph.node):
        raise InputError(f"{graph.path} is quantized already: take the bundle that it was made of")
    weights, modules = {tensor.name for tensor in graph.model.graph.initializer}, graph.modules_of_nodes()
    found = [node for node in graph.model.graph.node if node.op_type in _WEIGHTED and node.input[1] in weights]
    uses = Counter(name for node in found for name in (modules[node.name], node.input[1]))
    chosen: list[Operator] = []
    kept: dict[str, str] = {}
    for node in found:
        module, weight = modules[node.name], node.input[1]
        why = _why(module, keep) or ("it is used twice" if max(uses[module], uses[weight]) > 1 else "")
        if why:
            kept[module] = why
        else:
            chosen.append(Operator(module, node.name, node.op_type, weight, _axis(node), node.input[0], node.output[0]))
    paths = [modules[node.name] for node in found]
    unknown = next((part for part in keep if not any(part in path for path in paths)), None)
    if unknown:
        raise InputError(f"quantization.keep: no module that can be quantized has {unknown!r} in its path; one is {paths[len(paths) // 2]}")
    return chosen, kept


def _why(module: str, keep: Sequence[str]) -> str:
    if VALUES in module:
        return "its neurons can be silenced"
    part = next((part for part in SENSITIVE if part in module), None)
    if part:
        return f"{part} is sensitive"
    return "the recipe keeps it" if any(part in module for part in keep) else ""


def _axis(node: NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else 1
