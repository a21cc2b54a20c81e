"""The noise of a seed is PyTorch's, whoever draws it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_edge.sampling.noise import NumpyNoise, TorchNoise, initial_noise, noise_of


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1, 2**40 + 3])
def test_numpy_draws_what_torch_draws_one_draw_after_the_other(seed: int) -> None:
    generator, ours = torch.Generator().manual_seed(seed), NumpyNoise(seed)
    for shape in ((4, 8, 8), (4, 64, 64), (3, 5, 7), (16,), (17,)):  # of which two are no multiple of 16
        theirs = torch.randn(shape, generator=generator).numpy()
        got = ours.draw(shape)
        assert got.dtype == np.float32
        assert np.abs(got - theirs).max() < 1e-6


def test_torch_s_generator_is_at_hand_and_goes_on() -> None:
    noise = TorchNoise(3)
    first = noise.draw((4, 8, 8))
    second = torch.randn((4, 8, 8), generator=noise.generator).numpy()
    both = NumpyNoise(3)
    assert np.allclose(first, both.draw((4, 8, 8)), atol=1e-6)
    assert np.allclose(second, both.draw((4, 8, 8)), atol=1e-6)


def test_fewer_numbers_than_it_knows_to_draw_are_refused() -> None:
    with pytest.raises(ValueError, match="16"):
        NumpyNoise(0).draw((3, 5))


def test_without_torch_numpy_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    with_torch = initial_noise([1, 2], (4, 8, 8))
    monkeypatch.setattr("nemo_edge.sampling.noise.importable", lambda *_: False)
    assert isinstance(noise_of(1), NumpyNoise)
    assert np.allclose(initial_noise([1, 2], (4, 8, 8)), with_torch, atol=1e-6)
