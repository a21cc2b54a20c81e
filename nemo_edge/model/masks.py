"""What a masked engine is told to silence, in any of the forms it is given: neurons, a file of either, an array, or "off".

Knows one mask for all pictures of a call, or one a picture; how it gets to the rows of the UNet is `sampling.loop`'s, or a drop-in's.
"""

from __future__ import annotations

__all__ = ["OFF", "Mask", "read_mask"]

from os import PathLike
from pathlib import Path

import numpy as np

from nemo_edge.model.neurons import NeuronSet, read_neurons
from nemo_edge.system.errors import InputError

OFF = "off"
"""In place of a mask: silence nothing."""

Mask = NeuronSet | np.ndarray | str | PathLike[str]
"""Neurons to silence; their file (`neurons.json`, or the official code's `.csv`); factors [N] or their `.npy`; or "off"."""


def read_mask(own: NeuronSet, given: Mask | None = None) -> np.ndarray:
    """Return the factor of each neuron, float of `given`'s shape, [N] for neurons: those of the bundle's `own` set where none is given.

    Raises `InputError` for neurons of another model, and for what holds no factors from 0 to 1 of N neurons.
    """
    if given is None:
        return own.mask()
    if isinstance(given, str) and given == OFF:
        return NeuronSet.empty(own.layers).mask()
    if isinstance(given, np.ndarray):
        return _checked(given, "the mask", own.total)
    if isinstance(given, NeuronSet):
        return _of_neurons(given, "the set", own)
    path = Path(given)
    if path.suffix != ".npy":
        return _of_neurons(read_neurons(path, own.layers), str(path), own)
    try:
        array: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a mask (.npy, float, [{own.total}]): {error}") from error
    return _checked(array, str(path), own.total)


def _of_neurons(chosen: NeuronSet, what: str, own: NeuronSet) -> np.ndarray:
    chosen.check_layers(own.layers, what)
    return chosen.mask()


def _checked(array: np.ndarray, what: str, total: int) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise InputError(f"{what} is not a mask (.npy, float, [{total}]): it holds {array.dtype}")
    if array.ndim not in (1, 2) or array.shape[-1] != total or not len(array):
        raise InputError(f"the mask has shape {list(array.shape)}, expected [{total}] (value neurons), or one such row a picture")
    if not ((array >= 0) & (array <= 1)).all():
        raise InputError(f"{what} must hold factors from 0 to 1, but has NaN or values outside: check how it was made")
    return array
