"""Multi-scale structural similarity (Wang et al. 2003) of latents, as the official code asks torchmetrics for it.

Gaussian window of 11 taps and σ 1.5, k₁ 0.01, k₂ 0.03, three scales with exponents 0.33, and a data range that is taken of all
pairs of a call together at every scale: torchmetrics' `multiscale_structural_similarity_index_measure(…, kernel_size=11,
betas=(0.33, 0.33, 0.33))`, which `tests/test_multiscale.py` compares with. It is written anew because the search spends more time
in it than in a small UNet: the window is separable, what belongs to one picture is computed once for all its pairs, and a picture
that is enlarged is never written out.
Shapes: M pictures, P pairs, C channels, H and W of the pictures.
"""

from __future__ import annotations

__all__ = ["ms_ssim", "pairwise_scores"]

from collections.abc import Sequence
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

_Pairs = tuple[slice, slice]
"""Pictures on the left, one or as many as there are on the right."""


def ms_ssim(a_PCHW: Tensor, b_PCHW: Tensor) -> Tensor:
    """Return the similarity of each a with the b beside it, [P].

    Latents of less than 44 pixels are enlarged by an integer factor (nearest) first. The data range is that of the whole
    call, so that a pair's score depends a little (about 1e-3) on what else is in it.
    """
    if a_PCHW.shape != b_PCHW.shape:
        raise InputError(f"pictures of {list(a_PCHW.shape)} and {list(b_PCHW.shape)} cannot be compared: they must be of one shape")
    count = len(a_PCHW)
    return _similarity(torch.cat([a_PCHW, b_PCHW]), [(slice(0, count), slice(count, 2 * count))])


def pairwise_scores(delta_SCHW: Tensor) -> Tensor:
    """Return the similarity of all pairs of seeds, [P], in the order of `torch.combinations`."""
    count = len(delta_SCHW)
    return _similarity(delta_SCHW, [(slice(i, i + 1), slice(i + 1, count)) for i in range(count - 1)])


def _similarity(x_MCHW: Tensor, pairs: Sequence[_Pairs]) -> Tensor:
    size = min(x_MCHW.shape[-2:])
    factor = 1 if size >= _SMALLEST else -(-_ENLARGED // size)
    found: Tensor | float = 1.0
    for scale, beta in enumerate(_BETAS):
        found = found * _at_scale(x_MCHW, pairs, factor, coarsest=scale == len(_BETAS) - 1).relu() ** beta
        if factor % 2 == 0:  # the mean of four copies is the pixel itself
            factor //= 2
        else:
            x_MCHW, factor = torch.nn.functional.avg_pool2d(_enlarged(x_MCHW, factor), 2), 1
    return torch.as_tensor(found)


def _enlarged(x_MCHW: Tensor, factor: int) -> Tensor:
    return x_MCHW.repeat_interleave(factor, -1).repeat_interleave(factor, -2) if factor > 1 else x_MCHW


def _at_scale(x_MCHW: Tensor, pairs: Sequence[_Pairs], factor: int, coarsest: bool) -> Tensor:
    """Contrast and structure over the pixels that have all their neighbours; at the coarsest scale with luminance, over all: [P]."""
    sides = [x_MCHW[pairs[0][side].start : pairs[-1][side].stop] for side in (0, 1)]
    span = torch.stack([side.max() - side.min() for side in sides]).max()
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    mean_M = _window(x_MCHW, factor, coarsest)
    spread_M = (_window(x_MCHW.square(), factor, coarsest) - mean_M.square()).clamp_(min=0).add_(c2 / 2)
    found = []
    for left, right in pairs:  # (2 cov + c₂) / (var + var' + c₂), the window's weights being 1 in all
        covariance_P = _window((x_MCHW[left] * x_MCHW[right]).add_(c2 / 2), factor, coarsest)
        similarity = covariance_P.addcmul_(mean_M[left], mean_M[right], value=-1).div_(spread_M[left] + spread_M[right])
        if coarsest:
            similarity *= (2 * mean_M[left] * mean_M[right] + c1) / (mean_M[left].square() + mean_M[right].square() + c1)
        found.append(similarity.mean(dim=(1, 2, 3)))
    return 2 * torch.cat(found)


def _window(x_MCHW: Tensor, factor: int, everywhere: bool) -> Tensor:
    """The Gaussian mean around each pixel of the picture enlarged by `factor` that has all its neighbours, or around every one."""
    height, width = (_bands(size, factor, everywhere, x_MCHW.dtype, x_MCHW.device) for size in x_MCHW.shape[-2:])
    return height @ x_MCHW @ width.T


@lru_cache
def _bands(size: int, factor: int, everywhere: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The window over an enlarged picture as a matrix over the picture itself, a row for each place.

    [size × factor - 10, size], or [size × factor, size] where pixels are reflected at the border.
    """
    taps, reach, large = torch.exp(-0.5 * ((torch.arange(_TAPS) - _TAPS // 2) / _SIGMA) ** 2), _TAPS // 2, size * factor
    places = range(large) if everywhere else range(reach, large - reach)
    rows = torch.zeros(len(places), large)
    for row, place in enumerate(places):
        for tap, pixel in enumerate(range(place - reach, place + reach + 1)):
            inside = abs(pixel) if pixel < large else 2 * (large - 1) - pixel
            rows[row, inside] += taps[tap] / taps.sum()
    return rows.reshape(len(places), size, factor).sum(dim=-1).to(device, dtype)
