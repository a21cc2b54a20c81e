"""How alike two pictures are: SSIM, PSNR, LPIPS where it is installed; and how different the pictures of one prompt are.

Knows pictures only. Shapes: B pictures, H and W pixels, 3 channels; bytes.
"""

from __future__ import annotations

__all__ = ["diversity", "lpips", "psnr", "ssim"]

from importlib.util import find_spec
from itertools import combinations

import numpy as np
import torch
from torch import Tensor


def ssim(a_BHW3: np.ndarray, b_BHW3: np.ndarray) -> np.ndarray:
    """Return the structural similarity of each pair, [B] (Wang et al. 2004, 11 × 11 Gaussian window), in RGB; 1 for the same picture."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    values = structural_similarity_index_measure(_unit(a_BHW3), _unit(b_BHW3), data_range=1.0, reduction="none")
    found: np.ndarray = torch.as_tensor(values).reshape(-1).numpy()
    return found


def psnr(a_BHW3: np.ndarray, b_BHW3: np.ndarray) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each pair in dB, [B]; infinite for the same picture."""
    error_B = np.square(a_BHW3.astype(np.float64) - b_BHW3).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        found: np.ndarray = 10 * np.log10(255.0**2 / error_B)
    return found


def lpips(a_BHW3: np.ndarray, b_BHW3: np.ndarray) -> np.ndarray | None:
    """Return the LPIPS distance (AlexNet; Zhang et al. 2018) of each pair, [B]; None where the package `lpips` is not installed."""
    if find_spec("lpips") is None:
        return None
    import lpips as package

    with torch.no_grad():
        distances: Tensor = package.LPIPS(net="alex", verbose=False)(_unit(a_BHW3) * 2 - 1, _unit(b_BHW3) * 2 - 1)
    return distances.reshape(-1).numpy()


def diversity(pictures_BHW3: np.ndarray) -> float:
    """Return the mean of 1 - SSIM over all pairs of pictures; 0 when they are all the same, NaN for fewer than two."""
    pairs = np.array(list(combinations(range(len(pictures_BHW3)), 2)))
    return float(1 - ssim(pictures_BHW3[pairs[:, 0]], pictures_BHW3[pairs[:, 1]]).mean()) if len(pairs) else float("nan")


def _unit(pictures_BHW3: np.ndarray) -> Tensor:
    return torch.from_numpy(pictures_BHW3).permute(0, 3, 1, 2).float() / 255
