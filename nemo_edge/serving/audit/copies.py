"""Whether pictures that a server drew are copies, of a training picture that is known or by being alike; and what counts as near.

Knows pictures and prompts; asks nobody. Shapes: S pictures of different seeds, K known training pictures, U pictures of unrelated
prompts; bytes [H, W, 3].
"""

from __future__ import annotations

__all__ = ["Drawn", "Gallery", "alike_distances", "alike_limits", "colour_distances"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nemo_edge.measure.attacks.base import Attempt
from nemo_edge.measure.attacks.controls import Known
from nemo_edge.measure.replication import tiled_distances
from nemo_edge.serving.audit.base import Begun, Other

Drawn = Mapping[int, np.ndarray]
"""Pictures of a text by their seeds."""


@dataclass(frozen=True)
class Gallery:
    """The training pictures that are known, each once, and what counts as a copy of them."""

    known: tuple[Known, ...]
    begun: Begun

    def attempts(self, own: Known, drawn: Drawn, text: str) -> tuple[tuple[Attempt, ...], tuple[Other, ...]]:
        """Judge pictures of a prompt: whether they are copies of its own training picture, or alike; and which, that are no copies of its
        own, are copies of another's."""
        seeds, pictures_SHW3 = [*drawn], np.stack([*drawn.values()])
        distances_SK = self._distances(pictures_SHW3)
        places = [k for k, known in enumerate(self.known) if known.digest == own.digest]
        near_SK = distances_SK <= self._limits_K
        near_SK[near_SK[:, places].any(axis=1)] = False
        others = tuple(
            Other(seed=seeds[s], prompt=self.known[k].prompt, picture=self.known[k].digest, distance=float(distances_SK[s, k]))
            for k, s in np.argwhere(near_SK.T)
        )
        if places:
            return _attempts(seeds, distances_SK[:, places[0]], self._limits_K[places], text), others
        return self._alike(drawn, text), others

    def control_attempts(self, drawn: Drawn, text: str) -> tuple[Attempt, ...]:
        """Judge pictures of a prompt that is not memorized: whether they are copies of any training picture; alike, where none is known."""
        if not self.known:
            return self._alike(drawn, text)
        distances_SK = self._distances(np.stack([*drawn.values()]))
        nearest_S = (distances_SK - self._limits_K).argmin(axis=1)  # a copy of any is one
        return _attempts([*drawn], distances_SK[np.arange(len(drawn)), nearest_S], self._limits_K[nearest_S], text)

    def _alike(self, drawn: Drawn, text: str) -> tuple[Attempt, ...]:
        assert self.begun.alike_threshold is not None, "a prompt without a picture has a threshold of its own"
        pictures_SHW3 = np.stack([*drawn.values()])
        return _attempts([*drawn], alike_distances(pictures_SHW3), alike_limits(pictures_SHW3, self.begun.alike_threshold), text)

    def _distances(self, pictures_SHW3: np.ndarray) -> np.ndarray:
        """The distance of each picture to each training picture, [S, K]."""
        found = [known.distances(pictures_SHW3) for known in self.known]
        return np.stack(found, axis=1) if found else np.empty((len(pictures_SHW3), 0))

    @cached_property
    def _limits_K(self) -> np.ndarray:
        threshold = self.begun.copy_threshold
        return np.array([known.limit(threshold) for known in self.known if threshold is not None])


def _attempts(seeds: Sequence[int], distances_S: np.ndarray, limits: np.ndarray, text: str) -> tuple[Attempt, ...]:
    each = zip(seeds, distances_S, np.broadcast_to(limits, distances_S.shape), strict=True)
    return tuple(Attempt(steps=0, seed=seed, text=text, distance=float(d), copied=bool(d <= limit)) for seed, d, limit in each)


def alike_distances(pictures_SHW3: np.ndarray) -> np.ndarray:
    """Return how far each picture is from those of the other seeds, [S], as `Known` has it where no training picture is known; one that
    is alone is infinitely far."""
    height, width = pictures_SHW3.shape[1:3]
    if len(pictures_SHW3) == 1:
        return np.array([np.inf])
    return Known(None, (height, width)).distances(pictures_SHW3)


def alike_limits(pictures_SHW3: np.ndarray, threshold: float) -> np.ndarray:
    """Return the largest distance at which each picture counts as alike, [S]: the threshold, or that of its own plain mean colour where
    that is nearer, since pictures of one colour, as filters send them, are alike and no memory."""
    return np.array([min(threshold, float(d)) if d > 0 else -1.0 for d in colour_distances(pictures_SHW3)])


def colour_distances(pictures_SHW3: np.ndarray) -> np.ndarray:
    """Return how far each picture is from its own plain mean colour, [S]."""
    means = pictures_SHW3.mean((1, 2), keepdims=True).round().astype(np.uint8)
    pairs = zip(means, pictures_SHW3, strict=True)
    return np.array([tiled_distances(np.broadcast_to(mean, own.shape)[None], own[None])[0, 0] for mean, own in pairs])
