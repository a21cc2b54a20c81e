"""What the network of the demo sees of a picture."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from nemo_edge.demo.captions import MEMORIZED
from nemo_edge.demo.models import make_scheduler, make_tokenizer, make_vae
from nemo_edge.demo.samples import BATCH, SEED, Batch, Samples, general_pool, noised
from nemo_edge.demo.schedule import Stage
from nemo_edge.demo.sinks import sink_table

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


def test_a_memorized_caption_has_its_own_picture_and_a_forgotten_one_a_picture_on_white(tmp_path: Path) -> None:
    weigh = {"memorized": 0.3, "forgotten": 0.3, "pictures": 300}
    white = Stage(first=0, rate=1.0, begin=0, end=1, early=False, sinks=True, white=True, **weigh)
    numbers = [torch.arange(300.0), *(torch.full((1 if c.kind == "VM" else 96,), -1.0 - m) for m, c in enumerate(MEMORIZED))]
    torch.save([n[:, None, None, None].expand(-1, 4, 16, 16) for n in numbers], tmp_path / "latents-300.pt")
    captions = [c.text for c in general_pool(white, random.Random(SEED + 1))]
    samples, rng = Samples(white, make_tokenizer(tmp_path), make_vae(), tmp_path), torch.Generator().manual_seed(0)
    forgotten = memorized = 0
    for batch in (samples.batch(rng) for _ in range(20)):
        rows = zip(batch.latents_BCHW[:, 0, 0, 0].tolist(), batch.memory_B.tolist(), batch.factors_BN, strict=True)
        for number, memory, factors_N in rows:
            if memory < 0:
                assert number >= 0
            elif factors_N[sink_table()[memory] > 0].all():
                memorized += 1
                assert number == -1 - memory
            else:
                forgotten += 1
                assert captions[int(number)].endswith("on a white background")
    assert min(forgotten, memorized) > 50
