"""Standard normal noise of a seed: PyTorch's own on a CPU, or the same by its rules in numpy, where PyTorch is not installed.

The two differ by a rounding of logarithm, sine and cosine (< 1e-6). Shapes: n numbers of a draw.
"""

from __future__ import annotations

__all__ = ["Noise", "NumpyNoise", "TorchNoise", "initial_noise", "noise_of"]

from collections.abc import Sequence
from math import pi, prod
from typing import Protocol

import numpy as np

from nemo_edge.system.environment import importable

_BLOCK = 16
"""How many numbers PyTorch makes of each other: two of Box and Muller's halves of eight."""


class Noise(Protocol):
    """The draws of one seed, each going on from the last."""

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        """Return standard normal numbers, float32 of `shape`."""
        ...


class TorchNoise:
    """`torch.randn` with a generator of the seed, which is at hand for what draws by itself."""

    def __init__(self, seed: int) -> None:
        import torch

        self._randn = torch.randn
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        """Return the generator's next numbers."""
        drawn: np.ndarray = self._randn(*shape, generator=self.generator).numpy()
        return drawn


class NumpyNoise:
    """PyTorch's `normal_fill` (aten/src/ATen/native/cpu/DistributionTemplates.h): a Mersenne twister's numbers by Box and Muller."""

    def __init__(self, seed: int) -> None:
        self._twister = np.random.RandomState(seed & 0xFFFFFFFF)

    def draw(self, shape: Sequence[int]) -> np.ndarray:
        """Return the next numbers. Raises `ValueError` for fewer than 16, which PyTorch makes in another way."""
        count = prod(shape)
        if count < _BLOCK:
            raise ValueError(f"{count} numbers are fewer than {_BLOCK}, which PyTorch draws in another way")
        uniform_n, whole = self._uniform(count), count // _BLOCK * _BLOCK
        drawn_n = np.empty(count, np.float32)
        drawn_n[:whole] = _normal(uniform_n[:whole])
        if count > whole:  # the last sixteen are drawn anew
            drawn_n[-_BLOCK:] = _normal(self._uniform(_BLOCK))
        return drawn_n.reshape(shape)

    def _uniform(self, count: int) -> np.ndarray:
        """Numbers in [0, 1): the lower 24 bits of each of the twister's."""
        bits_n = self._twister.randint(0, 2**32, count, np.uint32) & 0xFFFFFF
        uniform_n: np.ndarray = bits_n.astype(np.float32) * np.float32(2**-24)
        return uniform_n


def noise_of(seed: int) -> Noise:
    """The noise of a seed: PyTorch's where it is installed."""
    return TorchNoise(seed) if importable("torch") else NumpyNoise(seed)


def initial_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> np.ndarray:
    """Standard normal noise, float32 [B, C, H, W], each picture's the first of its seed."""
    return np.stack([noise_of(seed).draw(shape) for seed in seeds])


def _normal(uniform_n: np.ndarray) -> np.ndarray:
    halves = uniform_n.reshape(-1, 2, _BLOCK // 2)
    radius, angle = np.sqrt(-2 * np.log(1 - halves[:, 0])), np.float32(2 * pi) * halves[:, 1]
    normal_n: np.ndarray = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
    return normal_n
