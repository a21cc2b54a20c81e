"""Takes value neurons out of a UNet: for a while (`silenced`), for good (`bake_`), or by a mask (`masked`, and `gate` at run time).

All three give bit-identical results in eager float32. Knows value projections by name, nothing of prompts or scores.
Shapes: B rows, T tokens, N neurons of all layers, W neurons of one layer.
"""

from __future__ import annotations

__all__ = ["bake_", "gate", "masked", "silenced", "value_rows"]

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from ml_dtypes import bfloat16
from torch import Tensor, nn

from nemo_edge.model.component import VALUE_MASK, Component, Port
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.system.errors import InputError


@contextmanager
def silenced(unet: nn.Module, neurons: NeuronSet) -> Iterator[nn.Module]:
    """Within the context the outputs of `neurons` are zero, for all rows and tokens; leaving it restores the UNet exactly.

    Their rows of the value weights are zeroed and put back, which is bit for bit the official code's forward hook that
    multiplies by 0, and lets an exporter see the baked weights.
    """
    before = [
        (linear, kind, list(rows), tensor.detach()[list(rows)].clone())
        for linear, rows in _projections(unet, neurons)
        for kind, tensor in (("weight", linear.weight), ("bias", linear.bias))
        if tensor is not None
    ]
    try:
        yield bake_(unet, neurons)
    finally:
        with torch.no_grad():
            for linear, kind, rows, values in before:
                tensor = getattr(linear, kind)  # which may have been cast meanwhile, or given up
                tensor[rows] = values.to(tensor)


@torch.no_grad()
def bake_(unet: nn.Module, neurons: NeuronSet) -> nn.Module:
    """Zero the rows (and biases) of `neurons` in the value weights, in place. Return the same UNet."""
    for linear, rows in list(_projections(unet, neurons)):  # all of them are checked before the first is changed
        linear.weight[list(rows)] = 0
        if linear.bias is not None:
            linear.bias[list(rows)] = 0
    return unet


def value_rows(unet: nn.Module, neurons: NeuronSet, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Return what `bake_` zeroes, as it is now, in the type of a graph: `<layer>.weight` and `<layer>.bias` of each layer with neurons."""
    return {
        f"{layer.name}.{kind}": _array(tensor.detach()[list(rows)].to(dtype))
        for (layer, _), (linear, rows) in zip(neurons.items(), _projections(unet, neurons), strict=True)
        for kind, tensor in (("weight", linear.weight), ("bias", linear.bias))
        if rows and tensor is not None
    }


def _array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array; numpy's bfloat16 is that of ml_dtypes."""
    plain: np.ndarray = tensor.cpu().view(torch.int16).numpy().view(bfloat16) if tensor.dtype == torch.bfloat16 else tensor.cpu().numpy()
    return plain


def gate(component: Component, unet: nn.Module, layers: Sequence[ValueLayer]) -> Component:
    """Return the UNet's component with one more input, `value_mask` [B, N], a factor per row and neuron.

    N runs over `layers` in order. The UNet itself is not changed.
    """
    module = _GatedGraph(component.module, [linear for linear, _ in _projections(unet, NeuronSet.empty(layers))])
    mask = Port(VALUE_MASK, ("batch", sum(layer.width for layer in layers)), "mask")
    return replace(component, module=module, inputs=(*component.inputs, mask))


@contextmanager
def masked(projections: Sequence[nn.Linear], mask_BN: Tensor) -> Iterator[None]:
    """Within the context the output of each value projection is multiplied by its slice of `mask_BN`, row by row.

    N runs over `projections` in order. Raises `InputError` for a mask of another width.
    """
    widths = [linear.out_features for linear in projections]
    if mask_BN.shape[1] != sum(widths):
        raise InputError(f"the mask is for {mask_BN.shape[1]} value neurons, but the UNet has {sum(widths)}: it belongs to another model")
    with ExitStack() as stack:
        for linear, end in zip(projections, accumulate(widths), strict=True):
            # no torch.split: the exporter stores the sizes of 32 and more with the weights, where ONNX Runtime does not look for them
            slice_BW = mask_BN[:, end - linear.out_features : end]
            handle = linear.register_forward_hook(partial(_times, slice_BW[:, None, :]))
            stack.callback(handle.remove)
        yield


def _times(factor_B1W: Tensor, _module: nn.Module, _args: object, value_BTW: Tensor) -> Tensor:
    return value_BTW * factor_B1W


def _projections(unet: nn.Module, neurons: NeuronSet) -> Iterator[tuple[Any, tuple[int, ...]]]:
    """The projections that the set's layers name, with the chosen rows.

    Raises `InputError` where the UNet has none of that name and width.
    """
    for layer, rows in neurons.items():
        try:
            linear = unet.get_submodule(layer.name)
        except AttributeError as error:
            raise InputError(f"the UNet has no value layer {layer.name}: the neurons belong to another model") from error
        if getattr(linear, "out_features", None) != layer.width:
            raise InputError(
                f"value layer {layer.name} has {getattr(linear, 'out_features', '?')} neurons in this UNet, "
                f"but {layer.width} in the neuron set: it belongs to another model"
            )
        yield linear, rows


class _GatedGraph(nn.Module):
    """Multiplies each value projection's output by its slice of the mask, by hooks that live for one forward."""

    def __init__(self, graph: nn.Module, projections: Sequence[nn.Linear]) -> None:
        super().__init__()
        self.graph = graph
        self._projections = tuple(projections)  # a tuple: their parameters are registered once, under `graph`

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        *others, mask_BN = inputs
        with masked(self._projections, mask_BN):
            out: tuple[Tensor] = self.graph(*others)
        return out
