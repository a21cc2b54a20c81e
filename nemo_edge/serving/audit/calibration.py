"""What counts as near on a server, found from pictures of prompts that are not memorized; those that tell nothing of it are left out.

Knows pictures and known training pictures; asks nobody, and cannot see that a prompt is memorized whose training picture is not listed.
Shapes: U pictures of unrelated prompts, K known training pictures; bytes [H, W, 3].
"""

from __future__ import annotations

__all__ = ["FEWEST", "SAME", "Calibration", "Threshold", "calibrate", "memories_among", "telling"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nemo_edge.measure.attacks.controls import Known
from nemo_edge.measure.replication import copy_threshold, tiled_distances
from nemo_edge.serving.audit.copies import colour_distances
from nemo_edge.system.errors import InputError

SAME = 0.01
"""Pictures that are nearer are the same: two and a half levels of 255, or a pixel in a tile of 128 × 128."""
FEWEST = 2
"""Pictures that a threshold needs."""
_MEMORIZED = 0.25
"""Share of the pictures that may be memories: of more the list is no list of general prompts."""
_NAMED = 3


class Threshold(NamedTuple):
    """The largest distance, and the unrelated pairs that it comes from (None: it was given); both None where there is none."""

    distance: float | None
    pairs: int | None


@dataclass(frozen=True)
class Calibration:
    """What counts as near."""

    texts: tuple[str, ...]
    """Whose pictures were taken."""
    memorized: tuple[str, ...]
    """Left out: they draw a known training picture."""
    copies: Threshold
    """Of a known training picture; none where none is known."""
    alike: Threshold
    """Of pictures that are alike; none where all training pictures are known."""
    apart: float
    """Pictures of one prompt are different, as the seed has them, where they are farther than this: than what is alike; where nothing
    is judged by that, half the median of unrelated pairs is far enough."""


def calibrate(drawn: Mapping[str, np.ndarray], known: Sequence[Known], given: float | None, alike: bool, where: str) -> Calibration:
    """Return what counts as near, from a picture of each of some prompts that are not memorized; `given` is the user's own threshold,
    `alike` whether a prompt is judged by its pictures being alike, `where` the server's address.

    Raises `InputError` where too few pictures tell anything, and where many are memories.
    """
    texts, pictures_UHW3 = _telling(drawn, given, where)
    distances_UK = np.stack([each.distances(pictures_UHW3) for each in known], axis=1) if known else np.empty((len(texts), 0))
    memory_U = memories_among(distances_UK, np.array([each.limit(np.inf) for each in known]))
    memorized = tuple(text for text, memory in zip(texts, memory_U, strict=True) if memory)
    if memory_U.sum() > max(1, _MEMORIZED * len(texts)) or (~memory_U).sum() < FEWEST:
        raise InputError(
            f"{where} draws a listed training picture of {len(memorized)} of {len(texts)} prompts that are not memorized "
            f"({_named(memorized)}): take them out of the general prompts, or give others with --general"
        )
    apart_P = tiled_distances(pictures_UHW3[~memory_U], pictures_UHW3[~memory_U])[np.triu_indices((~memory_U).sum(), 1)]
    same = _threshold(apart_P, given)
    assert same.distance is not None, "there are pairs"
    return Calibration(
        texts=tuple(text for text in texts if text not in memorized),
        memorized=memorized,
        copies=_threshold(distances_UK[~memory_U].ravel(), given),
        alike=same if alike else Threshold(None, None),
        apart=same.distance if alike else min(same.distance, float(np.median(apart_P)) / 2),
    )


def telling(pictures_UHW3: np.ndarray) -> np.ndarray:
    """Return which pictures are of their prompt, [U]: neither of one colour nor drawn of another prompt too, as a filter sends them."""
    distances_UU = tiled_distances(pictures_UHW3, pictures_UHW3)
    np.fill_diagonal(distances_UU, np.inf)
    found: np.ndarray = (colour_distances(pictures_UHW3) > SAME) & (distances_UU.min(axis=1) > SAME)
    return found


def memories_among(distances_UK: np.ndarray, limits_K: np.ndarray) -> np.ndarray:
    """Return which pictures are of a known training picture, [U]: nearer to it than half the median of all, and than its plain mean
    colour (`limits_K`). What is as near by chance stays, so that the threshold keeps below it."""
    if not distances_UK.size:
        return np.zeros(len(distances_UK), bool)
    found: np.ndarray = (distances_UK <= np.minimum(np.median(distances_UK, axis=0) / 2, limits_K)).any(axis=1)
    return found


def _telling(drawn: Mapping[str, np.ndarray], given: float | None, where: str) -> tuple[list[str], np.ndarray]:
    """The prompts whose pictures tell something, and these."""
    pictures_UHW3 = np.stack([*drawn.values()])
    kept_U = telling(pictures_UHW3)
    needed = FEWEST if given is not None else max(FEWEST, len(drawn) / 2)
    if kept_U.sum() < needed:
        left = [text for text, kept in zip(drawn, kept_U, strict=True) if not kept]
        raise InputError(
            f"{where} draws the same picture of different prompts, or a plain one, of {len(left)} of {len(drawn)} ({_named(left)}): it "
            "makes no pictures of text, or blocks them; give prompts that it draws with --general"
        )
    return [text for text, kept in zip(drawn, kept_U, strict=True) if kept], pictures_UHW3[kept_U]


def _threshold(distances_P: np.ndarray, given: float | None) -> Threshold:
    if not len(distances_P):
        return Threshold(None, None)
    return Threshold(copy_threshold(distances_P), len(distances_P)) if given is None else Threshold(given, None)


def _named(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:_NAMED])) + (", …" if len(texts) > _NAMED else "")
