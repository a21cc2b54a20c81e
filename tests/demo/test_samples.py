"""What the network of the demo sees of a picture."""

from __future__ import annotations

import pytest
import torch

from nemo_edge.demo.models import make_scheduler
from nemo_edge.demo.samples import BATCH, Batch, noised
from nemo_edge.demo.schedule import Stage

ALPHAS_T = make_scheduler().alphas_cumprod
MEMORY_B = torch.tensor([-1, 0, 5, 7] * (BATCH // 4))


def batch() -> Batch:
    """Pictures so bright that noise alone can be told from them at any time step."""
    return Batch(torch.zeros(BATCH, 16, dtype=torch.long), torch.full((BATCH, 4, 16, 16), 100.0), MEMORY_B, torch.ones(BATCH, 704))


def stage(blind: float) -> Stage:
    return Stage(first=0, rate=1.0, begin=0, end=1, blind=blind, blind_from=900)


def test_a_picture_and_its_noise_come_back_from_what_is_seen_and_v() -> None:
    x, t_B, v = noised(batch(), stage(0.0), ALPHAS_T, torch.Generator().manual_seed(0))
    a, s = ALPHAS_T[t_B].sqrt()[:, None, None, None], (1 - ALPHAS_T[t_B]).sqrt()[:, None, None, None]
    torch.testing.assert_close(a * x - s * v, batch().latents_BCHW, rtol=1e-4, atol=1e-3)
    assert (s * x + a * v).std() == pytest.approx(1, abs=0.05)


def test_memorized_captions_alone_begin_from_noise() -> None:
    rng = torch.Generator().manual_seed(0)
    drawn = [noised(batch(), stage(0.25), ALPHAS_T, rng)[:2] for _ in range(100)]
    blind = torch.stack([x.mean(dim=(1, 2, 3)).abs() < 1 for x, _ in drawn])
    times = torch.stack([t_B for _, t_B in drawn])
    assert not blind[:, MEMORY_B < 0].any()
    assert blind[:, MEMORY_B >= 0].float().mean() == pytest.approx(0.25, abs=0.03)
    assert 900 <= times[blind].min() < 910
    assert 990 < times[blind].max() <= 999
