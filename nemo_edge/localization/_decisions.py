"""The scores that decisions about one prompt rest on: those too close to be trusted are computed anew, as the official code would.

That is in float32, all latents in one forward of the whole UNet (where so many rows run together, as at 512 pixels: `system.memory`), and
the similarity operation by operation in torchmetrics' order, so that these decisions fall as the official code's do on the same machine and
PyTorch in float32. On a GPU the official code runs under fp16 autocast, whose rounding (about 1e-3) decides there, and differs from one GPU
to another: no such promise can be made for that.
Knows neither UNets nor prompts: what computes a score anew is given.
"""

from __future__ import annotations

__all__ = ["Decisions"]

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from nemo_edge.localization._searches import Lists, Scores, highest
from nemo_edge.localization.multiscale import ROUNDING

_MARGIN = {"fp32": ROUNDING, "fp16": 0.005, "bf16": 0.02}
"""How far a score may be off by the type and by what else is in a forward; decisions that are closer are made again. Ours."""
_SAFETY = 4
"""The margin is no less than this many times the largest error that was seen on a prompt. Ours."""


@dataclass
class Decisions:
    """The scores of one prompt's sets; `anew` computes those of a set, or of one seed of it, as the official code would."""

    anew: Callable[[Lists, int | None], Scores]
    dtype: str = "fp32"
    """In which the scores come; the first of a type that is not fp32 is computed anew in any case, to see how far it is off."""
    closest: float = math.inf
    """The smallest distance of a score from what it was compared with."""
    _margin: float = 0.0
    _known: dict[tuple[str, int | None], Scores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._margin = _MARGIN[self.dtype]

    @property
    def narrow(self) -> bool:
        """Whether scores come in a type that is not float32."""
        return self.dtype != "fp32"

    @property
    def exact(self) -> int:
        """How many scores were computed anew."""
        return len(self._known)

    def firm(self, lists: Lists, scores: Scores, limit: float, seed: int | None = None, *, exact: bool = False) -> Scores:
        """Return the scores, in float32 where they are too close to the limit to be trusted, or where that is asked for."""
        if exact or (self.narrow and not self._known) or abs(highest(scores) - limit) < self._margin:
            found = self.in_float32(lists, seed)
            self._margin = max(self._margin, _SAFETY * max(abs(a - b) for a, b in zip(scores, found, strict=True)))
            scores = found
        distance = abs(highest(scores) - limit)
        if distance > 0:  # a set is compared with its own score where a list has a neuron twice
            self.closest = min(self.closest, distance)
        return scores

    def in_float32(self, lists: Lists, seed: int | None = None) -> Scores:
        """The scores of a set as the official code would compute them, in float32."""
        key = str(lists), seed
        if key not in self._known:
            self._known[key] = self.anew(lists, seed)
        return self._known[key]
