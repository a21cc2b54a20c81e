"""How alike pictures are, against closed forms."""

from __future__ import annotations

from importlib.util import find_spec
from math import inf, isnan, log10

import numpy as np
import pytest

from nemo_edge.measure.similarity import diversity, lpips, psnr, ssim

C1 = 0.01**2
"""Wang et al. 2004: the constant of the luminance term for pictures in [0, 1]."""


def flat(*levels: int, edge: int = 16) -> np.ndarray:
    """Pictures of one grey level each, [B, edge, edge, 3]."""
    return np.stack([np.full((edge, edge, 3), level, np.uint8) for level in levels])


def noise(count: int, edge: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, edge, edge, 3), np.uint8)


def luminance(a: float, b: float) -> float:
    """SSIM of two pictures without any contrast."""
    a, b = a / 255, b / 255
    return (2 * a * b + C1) / (a**2 + b**2 + C1)


def test_the_same_pictures_are_as_alike_as_can_be() -> None:
    pictures = noise(2)
    assert ssim(pictures, pictures) == pytest.approx(1, abs=1e-6)
    assert psnr(pictures, pictures).tolist() == [inf, inf]


def test_ssim_of_grey_pictures_is_its_luminance_term() -> None:
    got = ssim(flat(10, 100, 0), flat(20, 200, 255))
    assert got.shape == (3,)
    assert got == pytest.approx([luminance(10, 20), luminance(100, 200), luminance(0, 255)], abs=1e-4)


def test_ssim_falls_with_the_noise_and_is_symmetric() -> None:
    base, rng = noise(1), np.random.default_rng(1)
    less, more = (np.clip(base + rng.normal(0, sigma, base.shape), 0, 255).astype(np.uint8) for sigma in (5, 50))
    assert 1 > ssim(base, less)[0] > ssim(base, more)[0] > 0
    assert ssim(base, more) == pytest.approx(ssim(more, base), abs=1e-6)


@pytest.mark.parametrize("off", [1, 10, 255])
def test_psnr_of_a_constant_error_is_its_closed_form(off: int) -> None:
    for a, b in ((flat(0), flat(off)), (flat(off), flat(0))):  # bytes must not wrap around
        assert psnr(a, b) == pytest.approx([20 * log10(255 / off)], rel=1e-12)


def test_psnr_is_of_each_pair() -> None:
    one_pixel = flat(0, edge=4)
    one_pixel[0, 0, 0, 0] = 255
    assert psnr(flat(0, 0, edge=4), np.concatenate([one_pixel, flat(0, edge=4)])).tolist() == [pytest.approx(10 * log10(48)), inf]


def test_diversity_is_the_mean_over_all_pairs() -> None:
    pairs = [luminance(10, 20), luminance(10, 200), luminance(20, 200)]
    assert diversity(flat(10, 20, 200)) == pytest.approx(1 - sum(pairs) / 3, abs=1e-4)


def test_equal_pictures_have_no_diversity_and_one_picture_has_none_to_speak_of() -> None:
    assert diversity(np.repeat(noise(1), 3, axis=0)) == pytest.approx(0, abs=1e-6)
    assert isnan(diversity(noise(1)))
    assert isnan(diversity(noise(1)[:0]))


def test_lpips_is_none_where_its_package_is_absent_and_zero_for_the_same() -> None:
    if find_spec("lpips") is None:
        assert lpips(noise(2), noise(2)) is None
    else:
        assert lpips(noise(2), noise(2)).tolist() == [0, 0]  # type: ignore[union-attr]
