"""Is a part of a picture a copy of a part of a training picture, wherever it stands and whatever its size?

The tiled distance (`replication`) looks at the same places of whole pictures. A copied foreground before another background, and a copy
that is shifted, cropped or mirrored, are far away by it. Here a window of the training picture is searched at every place of a picture,
over scales. Knows pictures only. Shapes: A pictures, K training pictures, P places, V windows, D numbers of a window.
"""

from __future__ import annotations

__all__ = ["ENOUGH_PAIRS", "local_distances", "unrelated_distances"]

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from nemo_edge.measure.replication import COPIES, Training

ENOUGH_PAIRS = round(1 / COPIES)
"""Unrelated pairs that a threshold at the quantile `COPIES` needs; of fewer it is their smallest distance. More are not taken."""
_SIDE = 32
"""Pixels of a picture's shorter side when it is searched."""
_WINDOW = 16
"""Pixels of a window's sides: half the picture's, so that an edge or a corner alone makes no window."""
_STRIDE = 4
"""Pixels of the training picture at scale 1 between its windows; they are searched at every pixel."""
_SCALES = tuple(2 ** (step / 4) for step in range(-4, 5))
"""Sizes of the training picture beside the picture's."""
_PLAIN = 0.06
"""Standard deviation, of a range of 1, up to which a window shows nothing that could be copied."""


def local_distances(pictures_AHW3: np.ndarray, training: Training) -> np.ndarray:
    """Return the windowed distance of each picture to each training picture, [A, K], from 0 (the same) to 1 (nothing in common).

    ‖(a - ā) - (b - b̄)‖ / ‖b - b̄‖ of the window b of the training picture, in any reading, upright or mirrored, and the window a of the
    picture that are nearest; ā and b̄ are the mean colours. 1 where a training picture is plain.
    """
    found_AK = np.ones((len(pictures_AHW3), len(training)), np.float32)
    searched = [_centred(_scaled(picture, 1.0)) for picture in pictures_AHW3]
    for k in range(len(training)):
        b_VD = _windows(training.only(k).pictures_RHW3)
        if len(b_VD):
            found_AK[:, k] = [_nearest(a_PD, b_VD) for a_PD in searched]
    return found_AK


def unrelated_distances(general_AHW3: np.ndarray, training: Training) -> np.ndarray:
    """Return the windowed distances of about `ENOUGH_PAIRS` unrelated pairs: of each training picture to pictures spread over all."""
    count = min(len(general_AHW3), max(1, ENOUGH_PAIRS // max(1, len(training))))
    places = np.linspace(0, len(general_AHW3) - 1, count).round().astype(int)
    return local_distances(general_AHW3[places], training).ravel()


def _nearest(a_PD: np.ndarray, b_VD: np.ndarray) -> float:
    a_P1, b_V = np.square(a_PD).sum(axis=1, keepdims=True), np.square(b_VD).sum(axis=1)
    squares_PV = (a_P1 - 2 * (a_PD @ b_VD.T)) / b_V + 1
    return float(np.sqrt(np.clip(squares_PV.min(), 0, 1)))


def _windows(pictures_RHW3: np.ndarray) -> np.ndarray:
    """The windows of a training picture's readings that show something, over scales and mirrored, [V, D]."""
    return np.concatenate([part for picture in pictures_RHW3 for part in _windows_of(picture)])


def _windows_of(picture_HW3: np.ndarray) -> Iterator[np.ndarray]:
    for scale in _SCALES:
        for turned in (picture_HW3, picture_HW3[:, ::-1]):
            windows_VD = _centred(_scaled(turned, scale), round(_STRIDE * max(1.0, scale)))
            yield windows_VD[windows_VD.std(axis=1) > _PLAIN]


def _scaled(picture_HW3: np.ndarray, scale: float) -> np.ndarray:
    """The picture in [0, 1] with a shorter side of `scale` times `_SIDE`."""
    height, width = picture_HW3.shape[:2]
    factor = scale * _SIDE / min(height, width)
    size = (max(_WINDOW, round(width * factor)), max(_WINDOW, round(height * factor)))
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture_HW3)).resize(size, Image.Resampling.BICUBIC), np.float32) / 255


def _centred(picture_HW3: np.ndarray, stride: int = 1) -> np.ndarray:
    """Windows without their mean colour, [P, D]."""
    views = sliding_window_view(picture_HW3, (_WINDOW, _WINDOW), axis=(0, 1))[::stride, ::stride]
    windows = views.reshape(-1, 3, _WINDOW**2)
    centred: np.ndarray = windows - windows.mean(axis=2, keepdims=True)
    return centred.reshape(len(windows), -1)
