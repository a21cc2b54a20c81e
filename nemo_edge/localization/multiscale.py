"""Multi-scale structural similarity (Wang et al. 2003) of latents, as the official code's pinned torchmetrics 1.3.2 computes it.

Gaussian window of 11 taps and σ 1.5, k₁ 0.01, k₂ 0.03, three scales with exponents 0.33, a data range that is taken of all pairs of a
call together at every scale, and every map averaged over the pixels that have all their neighbours: torchmetrics'
`multiscale_structural_similarity_index_measure(…, kernel_size=11, betas=(0.33, 0.33, 0.33))` up to 1.4.1. From 1.4.2 on it averages
the coarsest scale over the border too, which moves scores by up to 0.2; the paper's τ belongs to the former.

`ms_ssim` and `pairwise_scores` compute it quickly: the window is separable, what belongs to one picture is computed once for all its
pairs, and a picture that is enlarged is never written out. `plain_ms_ssim` and `plain_pairwise_scores` do what torchmetrics does in
its order, and so give its very bits on the same machine and PyTorch; they are for decisions that rounding could turn.
Shapes: M pictures, P pairs, C channels, H and W of the pictures.
"""

from __future__ import annotations

__all__ = ["ROUNDING", "ms_ssim", "pairwise_scores", "plain_ms_ssim", "plain_pairwise_scores"]

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from nemo_edge.system.errors import InputError

ROUNDING = 5e-5
"""Scores that are nearer to a limit than this are computed anew by the plain arithmetic: float32 rounding moves none as far. Ours."""
_TAPS, _SIGMA = 11, 1.5
"""The window: 11 taps are the official code's, σ is torchmetrics', which the code leaves as it is. The paper names neither."""
_K1, _K2 = 0.01, 0.03
"""torchmetrics', which the official code leaves as they are, and Wang et al.'s."""
_BETAS = (0.33, 0.33, 0.33)
"""Scales and exponents of the official code; the paper (§3.1) writes plain SSIM, Wang et al. have five scales."""
_SMALLEST = _TAPS * 2 ** (len(_BETAS) - 1)
"""The coarsest scale must not be smaller than the window, so that a pixel is left; torchmetrics refuses 43 pixels and less."""
_ENLARGED = 64
"""The size of Stable Diffusion's latents, the only one the official code knows, to which smaller ones are enlarged: ours."""

_Pairs = tuple[slice, slice]
"""Pictures on the left, one or as many as there are on the right."""


def ms_ssim(a_PCHW: Tensor, b_PCHW: Tensor) -> Tensor:
    """Return the similarity of each a with the b beside it, [P].

    Latents of less than 44 pixels, of which torchmetrics leaves nothing, are enlarged by an integer factor (nearest) to 64 or more
    first. The data range is that of the whole call, so that a pair's score depends a little (a few 1e-3) on what else is in it.
    """
    if a_PCHW.shape != b_PCHW.shape:
        raise InputError(f"pictures of {list(a_PCHW.shape)} and {list(b_PCHW.shape)} cannot be compared: they must be of one shape")
    count = len(a_PCHW)
    return _similarity(torch.cat([a_PCHW, b_PCHW]), [(slice(0, count), slice(count, 2 * count))])


def pairwise_scores(delta_SCHW: Tensor) -> Tensor:
    """Return the similarity of all pairs of seeds, [P], in the order of `torch.combinations`."""
    count = len(delta_SCHW)
    return _similarity(delta_SCHW, [(slice(i, i + 1), slice(i + 1, count)) for i in range(count - 1)])


def plain_ms_ssim(a_PCHW: Tensor, b_PCHW: Tensor) -> Tensor:
    """Return what `ms_ssim` does, operation by operation as torchmetrics 1.3.2 computes it: [P]."""
    factor, found = _factor(a_PCHW), []
    a_PCHW, b_PCHW = _enlarged(a_PCHW, factor), _enlarged(b_PCHW, factor)
    for _ in _BETAS:
        whole_P, contrast_P = _plain_at_scale(a_PCHW, b_PCHW)
        found.append(contrast_P.relu())
        a_PCHW, b_PCHW = (torch.nn.functional.avg_pool2d(x, (2, 2)) for x in (a_PCHW, b_PCHW))
    found[-1] = whole_P.relu()
    return torch.prod(torch.stack(found) ** torch.tensor(_BETAS, device=whole_P.device).view(-1, 1), dim=0)


def plain_pairwise_scores(delta_SCHW: Tensor) -> Tensor:
    """Return what `pairwise_scores` does by the plain arithmetic, [P]."""
    left, right = torch.combinations(torch.arange(len(delta_SCHW), device=delta_SCHW.device)).T
    return plain_ms_ssim(delta_SCHW[left], delta_SCHW[right])


def _factor(x_MCHW: Tensor) -> int:
    """How many times pictures are enlarged."""
    size = min(x_MCHW.shape[-2:])
    return 1 if size >= _SMALLEST else -(-_ENLARGED // size)


def _plain_at_scale(a_PCHW: Tensor, b_PCHW: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM, and its contrast and structure alone: [P] each."""
    span = max(a_PCHW.max() - a_PCHW.min(), b_PCHW.max() - b_PCHW.min())
    c1, c2 = pow(_K1 * span, 2), pow(_K2 * span, 2)
    reach, channels = _TAPS // 2, a_PCHW.shape[1]
    taps = torch.exp(-torch.pow(torch.arange(-reach, reach + 1, dtype=a_PCHW.dtype, device=a_PCHW.device) / _SIGMA, 2) / 2)
    taps = (taps / taps.sum()).unsqueeze(0)
    kernel = torch.matmul(taps.t(), taps).expand(channels, 1, _TAPS, _TAPS)
    a, b = (torch.nn.functional.pad(x, (reach,) * 4, mode="reflect") for x in (a_PCHW, b_PCHW))
    windows = torch.nn.functional.conv2d(torch.cat((a, b, a * a, b * b, a * b)), kernel, groups=channels).split(len(a))
    squared_a, squared_b, product = windows[0].pow(2), windows[1].pow(2), windows[0] * windows[1]
    variance_a, variance_b = (torch.clamp(w - m, min=0.0) for w, m in ((windows[2], squared_a), (windows[3], squared_b)))
    upper, lower = 2 * (windows[4] - product) + c2, variance_a + variance_b + c2
    maps = ((2 * product + c1) * upper) / ((squared_a + squared_b + c1) * lower), upper / lower
    whole_P, contrast_P = (m[..., reach:-reach, reach:-reach].reshape(len(a), -1).mean(-1) for m in maps)
    return whole_P, contrast_P


def _similarity(x_MCHW: Tensor, pairs: Sequence[_Pairs]) -> Tensor:
    factor = _factor(x_MCHW)
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
    """Contrast and structure over the pixels that have all their neighbours; at the coarsest scale with luminance: [P]."""
    sides = [x_MCHW[pairs[0][side].start : pairs[-1][side].stop] for side in (0, 1)]
    span = torch.stack([side.max() - side.min() for side in sides]).max()
    c1, c2 = (_K1 * span) ** 2, (_K2 * span) ** 2
    mean_M = _window(x_MCHW, factor)
    spread_M = (_window(x_MCHW.square(), factor) - mean_M.square()).clamp_(min=0).add_(c2 / 2)
    found = []
    for left, right in pairs:  # (2 cov + c₂) / (var + var' + c₂), the window's weights being 1 in all
        covariance_P = _window((x_MCHW[left] * x_MCHW[right]).add_(c2 / 2), factor)
        similarity = covariance_P.addcmul_(mean_M[left], mean_M[right], value=-1).div_(spread_M[left] + spread_M[right])
        if coarsest:
            similarity *= (2 * mean_M[left] * mean_M[right] + c1) / (mean_M[left].square() + mean_M[right].square() + c1)
        found.append(similarity.mean(dim=(1, 2, 3)))
    return 2 * torch.cat(found)


def _window(x_MCHW: Tensor, factor: int) -> Tensor:
    """The Gaussian mean around each pixel of the picture enlarged by `factor` that has all its neighbours."""
    height, width = (_bands(size, factor, x_MCHW.dtype, x_MCHW.device) for size in x_MCHW.shape[-2:])
    return height @ x_MCHW @ width.T


@lru_cache
def _bands(size: int, factor: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The window over an enlarged picture as a matrix over the picture itself, a row for each place: [size × factor - 10, size]."""
    taps = torch.exp(-0.5 * ((torch.arange(_TAPS) - _TAPS // 2) / _SIGMA) ** 2)
    rows = torch.zeros(size * factor - _TAPS + 1, size * factor)
    for place, row in enumerate(rows):
        row[place : place + _TAPS] = taps / taps.sum()
    return rows.reshape(len(rows), size, factor).sum(dim=-1).to(device, dtype)
