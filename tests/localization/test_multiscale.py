"""The similarity is that of the pinned torchmetrics, with the official code's settings: computed quickly, and bit for bit."""

from __future__ import annotations

import pytest
import torch
from reference import similarity
from torch import Tensor
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from nemo_edge.localization.multiscale import ROUNDING, ms_ssim, pairwise_scores, plain_ms_ssim, plain_pairwise_scores
from nemo_edge.system.errors import InputError


def latents(count: int, size: int, seed: int = 0) -> Tensor:
    """Noise that is alike in part, of all the ranges that a δ can have."""
    generator = torch.Generator().manual_seed(seed)
    common, own = (torch.rand(n, 4, size, size, generator=generator) for n in (1, count))
    return (common + own * torch.linspace(0, 2, count)[:, None, None, None]) / 3


@pytest.mark.parametrize("size", [8, 16, 43, 44, 48, 64, 96])
def test_it_is_the_pinned_torchmetrics_at_every_size(size: int) -> None:
    a, b = latents(3, size), latents(3, size, seed=1)
    found = ms_ssim(a, b)
    assert plain_ms_ssim(a, b).equal(similarity(a, b))
    torch.testing.assert_close(found, similarity(a, b), atol=ROUNDING / 10, rtol=0)
    assert found.max() - found.min() > 0.01
    torch.testing.assert_close(ms_ssim(a, a), torch.ones(3))


def test_what_is_unlike_scores_nothing() -> None:
    a = latents(2, 64)
    torch.testing.assert_close(ms_ssim(a, 1 - a), similarity(a, 1 - a), atol=ROUNDING / 10, rtol=0)
    assert ms_ssim(a, 1 - a).eq(0).all()


def test_the_data_range_is_that_of_all_pairs_together() -> None:
    a, b = latents(3, 64), latents(3, 64, seed=1)
    alone = ms_ssim(a[:1] / 9, b[:1] / 9)
    beside_others = ms_ssim(torch.cat([a[:1] / 9, a[1:]]), torch.cat([b[:1] / 9, b[1:]]))[:1]
    assert abs(float(alone - beside_others)) > 1e-3
    torch.testing.assert_close(alone, similarity(a[:1] / 9, b[:1] / 9), atol=ROUNDING / 10, rtol=0)


@pytest.mark.parametrize("size", [16, 64])
def test_pairs_are_in_the_order_of_combinations(size: int) -> None:
    delta = latents(5, size)
    pairs = torch.combinations(torch.arange(5))
    torch.testing.assert_close(pairwise_scores(delta), similarity(delta[pairs[:, 0]], delta[pairs[:, 1]]), atol=4e-6, rtol=0)
    assert plain_pairwise_scores(delta).equal(similarity(delta[pairs[:, 0]], delta[pairs[:, 1]]))
    delta[2] = delta[0]
    assert pairwise_scores(delta).argmax() == 1  # (0, 2)


@pytest.mark.parametrize("size", [16, 48, 64])
@pytest.mark.parametrize("border_alike", [True, False])
def test_the_border_of_the_coarsest_scale_counts_for_nothing(size: int, border_alike: bool) -> None:
    """The pinned torchmetrics leaves 5 pixels out on each side of it, where later versions average over the whole: their score is
    higher where latents are alike at the border, and lower where they are alike inside alone. Both, with the limit in between."""
    a = latents(2, size)
    inside = torch.zeros(1, 1, size, size)
    edge = size // 4 + size // 16
    inside[..., edge:-edge, edge:-edge] = 1
    b = torch.where(inside.eq(0 if border_alike else 1), a, latents(2, size, seed=5))
    pinned, later = similarity(a, b), over_the_whole(a, b)
    assert (later - pinned).mul(1 if border_alike else -1).min() > 0.02
    limit = (later + pinned) / 2
    for found in (ms_ssim(a, b), plain_ms_ssim(a, b)):
        assert (found > limit).equal(pinned > limit)
        torch.testing.assert_close(found, pinned, atol=4e-6, rtol=0)


def over_the_whole(a: Tensor, b: Tensor) -> Tensor:
    """The same by the installed torchmetrics, which is a later version."""
    factor = 1 if a.shape[-1] >= 44 else 64 // a.shape[-1]
    a, b = (x.repeat_interleave(factor, -1).repeat_interleave(factor, -2) for x in (a, b))
    return multiscale_structural_similarity_index_measure(a, b, reduction="none", kernel_size=11, betas=(0.33, 0.33, 0.33))


def test_rounding_moves_no_score_as_far_as_the_margin() -> None:
    furthest = 0.0
    for seed in range(40):
        a, b = latents(6, 64 if seed % 2 else 16, seed), latents(6, 64 if seed % 2 else 16, seed + 100)
        furthest = max(furthest, float((ms_ssim(a, (a + b) / 2) - plain_ms_ssim(a, (a + b) / 2)).abs().max()))
    assert 0 < furthest < ROUNDING / 4


def test_a_seed_alone_scores_no_more_than_together_with_others() -> None:
    """What the search by groups relies on: what one seed objects to, all object to."""
    for seed in range(30):
        a, b = latents(4, 48, seed), latents(4, 48, seed + 50)
        alone = torch.cat([plain_ms_ssim(a[i : i + 1], b[i : i + 1]) for i in range(4)])
        assert (plain_ms_ssim(a, b) >= alone - 1e-6).all()


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="must be of one shape"):
        ms_ssim(latents(2, 64), latents(2, 48))
