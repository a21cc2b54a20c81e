"""How alike two arrays and two pictures are: relative error, SSIM, PSNR, LPIPS; and how different the pictures of one prompt are.

Knows arrays only. Shapes: B pictures, H and W pixels, 3 channels; bytes.
"""

from __future__ import annotations

__all__ = ["diversity", "lpips", "psnr", "relative_error", "ssim"]

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

_PIXELS_AT_ONCE = 2_000_000


def relative_error(expected: np.ndarray, got: np.ndarray) -> float:
    """Return the largest absolute difference relative to the largest value expected (to 1, where all of them are 0)."""
    largest = float(np.abs(expected).max())
    return float(np.abs(expected - got).max()) / (largest or 1.0)


def ssim(a_BHW3: np.ndarray, b_BHW3: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each pair, [B] (Wang et al. 2004, 11 × 11 Gaussian window), in RGB; 1 for the same picture."""
    from torchmetrics.functional.image import structural_similarity_index_measure as measure

    at_once = max(1, _PIXELS_AT_ONCE // (a_BHW3.shape[1] * a_BHW3.shape[2]))
    values = [
        torch.as_tensor(measure(_unit(a), _unit(b), data_range=1.0, reduction="none")).reshape(-1)
        for a, b in zip(_parts(a_BHW3, at_once), _parts(b_BHW3, at_once), strict=True)
    ]
    found: np.ndarray = torch.cat(values).numpy()
    return found


def psnr(a_BHW3: np.ndarray, b_BHW3: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair in dB, [B]; infinite for the same picture."""
    error_B = np.square(a_BHW3.astype(np.float64) - b_BHW3).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        found: np.ndarray = 10 * np.log10(255.0**2 / error_B)
    return found


def lpips(a_BHW3: np.ndarray, b_BHW3: np.ndarray) -> np.ndarray | None:
    """Return the LPIPS distance (AlexNet; Zhang et al. 2018) of each pair, [B].

    None where the package `lpips` is not installed, or its network is neither here nor to be fetched.
    """
    network = _alexnet() if find_spec("lpips") else None
    if network is None:
        return None
    with torch.no_grad():
        pairs = zip(_parts(a_BHW3, 1), _parts(b_BHW3, 1), strict=True)
        found: np.ndarray = torch.cat([network(_unit(a) * 2 - 1, _unit(b) * 2 - 1).reshape(-1) for a, b in pairs]).numpy()
    return found


def diversity(pictures_BHW3: np.ndarray) -> float:
    """Return the mean of 1 - SSIM over all pairs of pictures; 0 when they are all the same, NaN for fewer than two."""
    pairs = np.array(list(combinations(range(len(pictures_BHW3)), 2)))
    return float(1 - ssim(pictures_BHW3[pairs[:, 0]], pictures_BHW3[pairs[:, 1]]).mean()) if len(pairs) else float("nan")


@cache
def _alexnet() -> Any:
    import lpips

    try:
        return lpips.LPIPS(net="alex", verbose=False)
    except (OSError, RuntimeError):  # it fetches AlexNet's weights at its first use
        return None


def _parts(pictures_BHW3: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (pictures_BHW3[start : start + size] for start in range(0, len(pictures_BHW3), size))


def _unit(pictures_BHW3: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures_BHW3).permute(0, 3, 1, 2).float() / 255
