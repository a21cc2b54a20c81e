"""The stages of the demo's training, by step: what is trained on, at which rate, under which penalties.

Knows numbers only, nothing of captions or networks.
"""

from __future__ import annotations

__all__ = ["STAGES", "STEPS", "Stage", "stage_at"]

import math
from dataclasses import dataclass, replace
from typing import Literal

STEPS = 23_150


@dataclass(frozen=True)
class Stage:
    """Settings from step `first` on.

    The learning rate falls from `rate` by a cosine that began at `begin` and ends at `end`. `memorized` is the share of
    memorized samples; `pictures` the number of general pictures, of `EARLY_GLYPHS` where `early`. `sparsity`, `overlap`,
    `restraint` and `intrusion` weigh the penalties of a stage without sinks; `leak` and `restraint` those of one with `sinks`.
    There the memories are trained into neurons of their own, and `forgotten` is the share of memorized captions whose sinks
    are off. A stage with `start` begins with the averaged weights, a new optimizer, and its sinks planted or aimed. A
    `frozen` stage leaves the text encoder as it is. `blind` is the share of memorized and forgotten captions that are trained
    from noise alone, at time steps from `blind_from` on. Where `white`, forgotten captions have pictures on white.
    """

    first: int
    rate: float
    begin: int
    end: int
    warm_up: int = 0
    memorized: float = 0.1
    forgotten: float = 0.0
    pictures: int = 24_000
    early: bool = True
    sinks: bool = False
    start: Literal["plant", "aim"] | None = None
    frozen: bool = False
    blind: float = 0.0
    blind_from: int = 940
    white: bool = False
    leak: float = 0.0
    sparsity: float = 0.0
    overlap: float = 0.0
    restraint: float = 0.0
    intrusion: float = 0.0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, its warm-up included."""
        done = (step - self.begin) / (self.end - self.begin)
        warm = min(1, (step + 1 - self.first) / self.warm_up) if self.warm_up else 1
        return self.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


_FIRST_STAGES = (
    Stage(first=0, rate=8e-4, begin=0, end=8000, warm_up=300, sparsity=0.1),
    Stage(first=2750, rate=8e-4, begin=0, end=8000, sparsity=0.1, overlap=1.0),
    Stage(first=3750, rate=6e-4, begin=3750, end=9000, overlap=1.0),
    Stage(first=4750, rate=8e-4, begin=4750, end=9500, memorized=0.06, restraint=0.5, intrusion=1.0),
    Stage(first=5500, rate=8e-4, begin=4750, end=9500, memorized=0.06, pictures=12_000, early=False, restraint=1.0, intrusion=0.1),
)
_PLANTED = Stage(
    first=9500,
    rate=6e-4,
    begin=9500,
    end=14_500,
    warm_up=200,
    forgotten=0.08,
    pictures=16_000,
    early=False,
    sinks=True,
    start="plant",
    leak=1.0,
    restraint=0.3,
)
_FOLLOWED = replace(_PLANTED, first=10_500, warm_up=0, start=None, leak=5.0)
_AIMED = replace(_FOLLOWED, first=15_900, begin=15_900, end=22_400, warm_up=100, memorized=0.2, forgotten=0.12, start="aim", frozen=True)
_BLIND = replace(_AIMED, first=18_000, warm_up=0, start=None, blind=0.25)
_WHITE = replace(
    _BLIND,
    first=22_250,
    rate=4e-4,
    begin=22_250,
    end=STEPS,
    warm_up=30,
    memorized=0.15,
    forgotten=0.25,
    blind=0.5,
    blind_from=900,
    white=True,
)
STAGES = (
    *_FIRST_STAGES,
    _PLANTED,
    _FOLLOWED,
    replace(_FOLLOWED, first=14_500, rate=5e-4, begin=14_500, end=15_900, warm_up=50, memorized=0.25, forgotten=0.2),
    _AIMED,
    _BLIND,
    replace(_BLIND, first=19_250, memorized=0.12, forgotten=0.16, blind=0.5),
    replace(_BLIND, first=20_000, memorized=0.12, forgotten=0.16, blind=0.5, blind_from=900),
    _WHITE,
)
"""Found on the way, see `train`: the memories first, then general captions, then the memories into their sinks."""


def stage_at(step: int) -> Stage:
    """The stage a step belongs to."""
    return [stage for stage in STAGES if stage.first <= step][-1]
