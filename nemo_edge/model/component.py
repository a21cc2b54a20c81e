"""One graph of a checkpoint: a module with plain tensors in and out, and the names and dimensions of both.

What a component is called and fed is written here once; PyTorch, ONNX and every engine follow it. Knows nothing of
diffusers: `checkpoint` makes components.
"""

from __future__ import annotations

__all__ = ["Component", "EXACT_TIMES", "GUIDANCE", "Port", "SKIPPED", "VALUE_MASK"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import nn

VALUE_MASK = "value_mask"
"""Name of the masked UNet's extra input, [B, N]: 1 keeps a neuron, 0 silences it."""
GUIDANCE = "timestep_cond"
"""Name of the input by which a consistency model's UNet is told the guidance scale, [B, E]: diffusers' and optimum's."""

SKIPPED = "skipped_hidden_state"
"""Name of the output of a text encoder of Stable Diffusion 1.x or 2.x that is read without its last layers (`clip_skip`), [B, T, D]."""

EXACT_TIMES = "time steps in float32"
"""What results in bfloat16 hang on beside their settings: those from before are of other time steps."""


@dataclass(frozen=True)
class Port:
    """One input: its name, its dimensions (a number, or the name of a dynamic one) and what it holds.

    `holds` is "float" (any number), "ids" (token ids below `high`), "time" (time steps and sizes) or "mask" (factors of 0 and 1).
    """

    name: str
    dims: tuple[int | str, ...]
    holds: Literal["float", "ids", "time", "mask"] = "float"
    high: int = 1000

    @property
    def exact(self) -> bool:
        """Whether it is float32 whatever the weights are: bfloat16 holds eight bits and makes the time step 981 one of 980."""
        return self.holds == "time"


@dataclass(frozen=True)
class Component:
    """A module whose `forward` takes the inputs in order and returns the outputs in order.

    `sizes` are the usual values of the dynamic dimensions other than the batch; `multiples` says of which number a
    dimension must be a multiple, in a graph that halves it several times.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    sizes: Mapping[str, int]
    multiples: Mapping[str, int] = field(default_factory=dict)

    def example(self, batch: int, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
        """Return a random feed of `batch` rows, float32 or int64; `sizes` override the usual ones."""
        rng = np.random.default_rng(seed)
        values = {"batch": batch, **self.sizes, **sizes}
        return {port.name: _random(port, rng, [values[d] if isinstance(d, str) else d for d in port.dims]) for port in self.inputs}


def _random(port: Port, rng: np.random.Generator, shape: list[int]) -> np.ndarray:
    if port.holds == "ids":
        return rng.integers(0, port.high, shape, dtype=np.int64)
    if port.holds == "time":
        return rng.integers(0, port.high, shape).astype(np.float32)
    if port.holds == "mask":
        return (rng.random(shape) < 0.5).astype(np.float32)
    return rng.standard_normal(shape, dtype=np.float32)
