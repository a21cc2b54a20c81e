"""The similarity is torchmetrics' own, with the official code's settings, computed in a quicker way."""

from __future__ import annotations

import pytest
import torch
from reference import similarity
from torch import Tensor

from nemo_edge.errors import InputError
from nemo_edge.multiscale import ms_ssim, pairwise_scores


def latents(count: int, size: int, seed: int = 0) -> Tensor:
    """Noise that is alike in part, of all the ranges that a δ can have."""
    generator = torch.Generator().manual_seed(seed)
    common, own = (torch.rand(n, 4, size, size, generator=generator) for n in (1, count))
    return (common + own * torch.linspace(0, 2, count)[:, None, None, None]) / 3


@pytest.mark.parametrize("size", [8, 16, 43, 44, 48, 64, 96])
def test_it_is_torchmetrics_own_at_every_size(size: int) -> None:
    a, b = latents(3, size), latents(3, size, seed=1)
    found = ms_ssim(a, b)
    torch.testing.assert_close(found, similarity(a, b), atol=2e-6, rtol=0)
    assert found.max() - found.min() > 0.01
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(3))


def test_what_is_unlike_scores_nothing_as_in_torchmetrics() -> None:
    a = latents(2, 64)
    torch.testing.assert_close(ms_ssim(a, 1 - a), similarity(a, 1 - a), atol=2e-6, rtol=0)
    assert ms_ssim(a, 1 - a).eq(0).all()


def test_the_data_range_is_that_of_all_pairs_together() -> None:
    a, b = latents(3, 64), latents(3, 64, seed=1)
    alone = ms_ssim(a[:1] / 9, b[:1] / 9)
    beside_others = ms_ssim(torch.cat([a[:1] / 9, a[1:]]), torch.cat([b[:1] / 9, b[1:]]))[:1]
    assert abs(float(alone - beside_others)) > 1e-3
    torch.testing.assert_close(alone, similarity(a[:1] / 9, b[:1] / 9), atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [16, 64])
def test_pairs_are_in_the_order_of_combinations(size: int) -> None:
    delta = latents(5, size)
    pairs = torch.combinations(torch.arange(5))
    torch.testing.assert_close(pairwise_scores(delta), similarity(delta[pairs[:, 0]], delta[pairs[:, 1]]), atol=4e-6, rtol=0)
    delta[2] = delta[0]
    assert pairwise_scores(delta).argmax() == 1  # (0, 2)


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="must be of one shape"):
        ms_ssim(latents(2, 64), latents(2, 48))
