"""Multi-scale structural similarity (Wang et al. 2003) of latents, as the official code asks torchmetrics for it.

Gaussian window of 11 taps and σ 1.5, k₁ 0.01, k₂ 0.03, three scales with exponents 0.33, and a data range that is taken of all
pairs of a call together at every scale: torchmetrics' `multiscale_structural_similarity_index_measure(…, kernel_size=11,
betas=(0.33, 0.33, 0.33))`, which `tests/test_multiscale.py` compares with. It is written anew because the search spends more time
in it than in a small UNet: the window is separable, and what belongs to one picture is computed once for all its pairs.
Shapes: M pictures, P pairs, C channels, H and W of the pictures.
"""

from __future__ import annotations

__all__ = ["ms_ssim", "pairwise_scores"]

from functools import lru_cache

import torch
from torch import Tensor

from nemo_edge.errors import InputError

_TAPS, _SIGMA = 11, 1.5
"""The window: 11 taps are the official code's, σ is torchmetrics', which the code leaves as it is. The paper names neither."""
_K1, _K2 = 0.01, 0.03
"""torchmetrics', which the official code leaves as they are, and Wang et al.'s."""
_BETAS = (0.33, 0.33, 0.33)
"""Scales and exponents of the official code; the paper (§3.1) writes plain SSIM, Wang et al. have five scales."""
_SMALLEST = _TAPS * 2 ** (len(_BETAS) - 1)
"""The coarsest scale must not be smaller than the window; torchmetrics refuses 43 pixels and less."""
_ENLARGED = 64
"""The size of Stable Diffusion's latents, the only one the official code knows, to which smaller ones are enlarged: ours."""


def ms_ssim(a_PCHW: Tensor, b_PCHW: Tensor) -> Tensor:
    """Return the similarity of each a with the b beside it, [P].

    Latents of less than 44 pixels are enlarged by an integer factor (nearest) first. The data range is that of the whole
    call, so that a pair's score depends a little (about 1e-3) on what else is in it.
    """
    if a_PCHW.shape != b_PCHW.shape:
        raise InputError(f"pictures of {list(a_PCHW.shape)} and {list(b_PCHW.shape)} cannot be compared: they must be of one shape")
    first = torch.arange(len(a_PCHW), device=a_PCHW.device)
    return _similarity(torch.cat([a_PCHW, b_PCHW]), first, first + len(a_PCHW))


def pairwise_scores(delta_SCHW: Tensor) -> Tensor:
    """Return the similarity of all pairs of seeds, [P], in the order of `torch.combinations`."""
    left_P, right_P = torch.combinations(torch.arange(len(delta_SCHW), device=delta_SCHW.device), r=2).unbind(1)
    return _similarity(delta_SCHW, left_P, right_P)


def _similarity(x_MCHW: Tensor, left_P: Tensor, right_P: Tensor) -> Tensor:
    size = min(x_MCHW.shape[-2:])
    if size < _SMALLEST:
        factor = -(-_ENLARGED // size)
        x_MCHW = x_MCHW.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    product_P = torch.ones(len(left_P), device=x_MCHW.device)
    for scale, beta in enumerate(_BETAS):
        product_P = product_P * _at_scale(x_MCHW, left_P, right_P, coarsest=scale == len(_BETAS) - 1).relu() ** beta
        x_MCHW = torch.nn.functional.avg_pool2d(x_MCHW, 2)
    return product_P


def _at_scale(x_MCHW: Tensor, left_P: Tensor, right_P: Tensor, coarsest: bool) -> Tensor:
    """Contrast and structure over the pixels that have all their neighbours; at the coarsest scale with luminance, over all: [P]."""
    left, right = x_MCHW[left_P], x_MCHW[right_P]
    span = torch.maximum(left.max() - left.min(), right.max() - right.min())
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    mean_M = _window(x_MCHW, coarsest)
    variance_M = (_window(x_MCHW.square(), coarsest) - mean_M.square()).clamp(min=0)
    mean_l, mean_r = mean_M[left_P], mean_M[right_P]
    covariance_P = _window(left * right, coarsest) - mean_l * mean_r
    similarity = (2 * covariance_P + c2) / (variance_M[left_P] + variance_M[right_P] + c2)
    if coarsest:
        similarity = similarity * (2 * mean_l * mean_r + c1) / (mean_l.square() + mean_r.square() + c1)
    return similarity.mean(dim=(1, 2, 3))


def _window(x_MCHW: Tensor, everywhere: bool) -> Tensor:
    """The Gaussian mean around each pixel that has all its neighbours, or around every one."""
    height, width = (_bands(size, everywhere, x_MCHW.dtype, x_MCHW.device) for size in x_MCHW.shape[-2:])
    return height @ x_MCHW @ width.T


@lru_cache
def _bands(size: int, everywhere: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The window as a matrix, a row for each place: [size - 10, size], or [size, size] where pixels are reflected at the border."""
    taps, reach = torch.exp(-0.5 * ((torch.arange(_TAPS) - _TAPS // 2) / _SIGMA) ** 2), _TAPS // 2
    places = range(size) if everywhere else range(reach, size - reach)
    rows = torch.zeros(len(places), size)
    for row, place in enumerate(places):
        for tap, pixel in enumerate(range(place - reach, place + reach + 1)):
            inside = abs(pixel) if pixel < size else 2 * (size - 1) - pixel
            rows[row, inside] += taps[tap] / taps.sum()
    return rows.to(device, dtype)
