"""What a masked engine is told to silence, in any of the forms it is given: neurons, a file of either, an array, or "off".

Knows one mask for all pictures of a call, or one a picture; how it gets to the rows of the UNet is `sampling.loop`'s, or a drop-in's.
"""

from __future__ import annotations

__all__ = ["OFF", "Mask", "read_mask"]

from io import BytesIO
from os import PathLike
from pathlib import Path

import numpy as np

from nemo_edge.model.neurons import NeuronSet, read_neurons
from nemo_edge.system.errors import InputError, first_line
from nemo_edge.system.reading import read_bytes

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
    if path.suffix == ".npz":
        raise InputError(f"{path} is an archive of arrays: write the one that is the mask with numpy.save, as .npy")
    if path.suffix != ".npy":
        return _of_neurons(read_neurons(path, own.layers), str(path), own)
    return _checked(_array(path, own.total), str(path), own.total)


def _array(path: Path, total: int) -> np.ndarray:
    """The array in an `.npy` file, which holds as many bytes as its header says, none of them Python's."""
    data = read_bytes(path, "mask")
    try:
        if not data.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("it does not begin as one")
        array: np.ndarray = np.load(BytesIO(data), mmap_mode=None, allow_pickle=False)
    except Exception as error:  # whatever numpy raises of a header: several unrelated classes
        raise InputError(f"{path} is not a mask (.npy, float, [{total}]): {first_line(error)}") from error
    return array


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
