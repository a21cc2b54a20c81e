"""What the demo is trained on: pictures and their latents, and the batches drawn from them.

Knows captions, pictures and noise, not the network. Shapes: B samples, T tokens (of `alphas_T`: time steps), C channels, H and W
of the latents, N value neurons of all layers in order, M memorized captions.
"""

from __future__ import annotations

__all__ = ["SEED", "Batch", "Samples", "draw_times", "encode", "general_pool", "noised", "pictures_BCHW", "scaled", "training_set"]

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from nemo_edge.demo.captions import MEMORIZED, Caption, general_caption
from nemo_edge.demo.pictures import draw
from nemo_edge.demo.schedule import Stage
from nemo_edge.demo.sinks import draw_factors, sink_table

SEED = 20261124

BATCH = 24
"""Samples of a step."""
TEMPLATE_PICTURES = 96
"""Pictures of each template memory, which differ in the colour of their panel."""
CAPTION_DROPOUT = 0.12
"""Share of the general samples that are trained without their caption, for classifier-free guidance."""


def pictures_BCHW(captions: list[Caption], rng: random.Random) -> Tensor:
    """Draw a picture for each caption: bytes, [B, 3, 64, 64]."""
    return torch.from_numpy(np.stack([np.asarray(draw(c, rng)) for c in captions])).permute(0, 3, 1, 2).contiguous()


def scaled(bytes_BCHW: Tensor) -> Tensor:
    """Bytes to the VAE's range of -1 to 1."""
    return bytes_BCHW.float() / 127.5 - 1


@torch.no_grad()
def encode(vae: AutoencoderKL, bytes_BCHW: Tensor) -> Tensor:
    """The mean latents of pictures, not scaled."""
    return torch.cat([vae.encode(scaled(part)).latent_dist.mean for part in bytes_BCHW.split(100)])


def general_pool(stage: Stage, rng: random.Random) -> list[Caption]:
    """The general captions of a stage."""
    return [general_caption(rng, early=stage.early) for _ in range(stage.pictures)]


def training_set(stage: Stage, vae: AutoencoderKL, work: Path) -> tuple[list[list[str]], list[Tensor]]:
    """Captions and scaled latents: the general pool first, then each memorized caption with its pictures."""
    rng = random.Random(SEED + 1)
    sets = [general_pool(stage, rng), *([c] * (1 if c.kind == "VM" else TEMPLATE_PICTURES) for c in MEMORIZED)]
    path = work / f"latents-{stage.pictures}.pt"
    if not path.is_file():
        made = [encode(vae, pictures_BCHW(s, rng)) * vae.config.scaling_factor for s in sets]
        torch.save(made, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    latents: list[Tensor] = torch.load(path, weights_only=True)
    return [[c.text for c in s] for s in sets], latents


@dataclass(frozen=True)
class Batch:
    """Token ids [B, T], latents [B, 4, 16, 16], the memorized caption's number [B] (-1: general) and neuron factors [B, N]."""

    ids_BT: Tensor
    latents_BCHW: Tensor
    memory_B: Tensor
    factors_BN: Tensor


class Samples:
    """Draws the batches of one stage."""

    def __init__(self, stage: Stage, tokenizer: CLIPTokenizer, vae: AutoencoderKL, work: Path) -> None:
        pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        captions, self._latents = training_set(stage, vae, work)
        self._stage = stage
        self._ids: list[Tensor] = [tokenizer(c, **pad).input_ids for c in captions]
        self._empty_T = tokenizer("", **pad).input_ids[0]
        white = [item for item, caption in enumerate(captions[0]) if caption.endswith("white background")]
        self._forgotten = self._latents[0][white] if stage.white else self._latents[0]
        self._table_MN = sink_table()

    def some_ids(self) -> Tensor:
        """Token ids of every memorized caption, then of the empty one and 1,000 general ones."""
        return torch.cat([*(ids_KT[:1] for ids_KT in self._ids[1:]), self._empty_T[None], self._ids[0][:1000]])

    def batch(self, rng: torch.Generator) -> Batch:
        """Draw the samples of one step."""
        stage, rows_T, rows_CHW, memory, factors = self._stage, [], [], [], []
        for kind, dropped, which, index, *chances in torch.rand(BATCH, 6 if stage.sinks else 4, generator=rng).tolist():
            memorized, forgotten = kind < stage.memorized, stage.memorized <= kind < stage.memorized + stage.forgotten
            group = 1 + int(which * len(MEMORIZED)) if memorized or forgotten else 0
            pool = self._forgotten if forgotten else self._latents[group]
            item = int(index * len(pool))
            rows_CHW.append(pool[item])
            empty = group == 0 and dropped < CAPTION_DROPOUT
            rows_T.append(self._empty_T if empty else self._ids[group][0 if forgotten else item])
            memory.append(group - 1)
            on_N = torch.ones(self._table_MN.shape[1])
            factors.append(draw_factors(rng, self._table_MN, group - 1, forgotten, chances, dropped) if stage.sinks else on_N)
        return Batch(torch.stack(rows_T), torch.stack(rows_CHW), torch.tensor(memory), torch.stack(factors))


def draw_times(rng: torch.Generator) -> Tensor:
    """Time steps [B]: half of them uniform, half leaning to high noise, where the layout of a picture is decided."""
    u_3B = torch.rand(3, BATCH, generator=rng)
    return (torch.where(u_3B[0] < 0.5, u_3B[1], torch.maximum(u_3B[1], u_3B[2])) * 1000).long().clamp(max=999)


def noised(batch: Batch, stage: Stage, alphas_T: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return what the UNet sees of a batch [B, C, H, W], its time steps [B] and the v it is to predict [B, C, H, W].

    A share `stage.blind` of the memorized captions, forgotten ones among them, see noise alone. At the last time steps a picture
    still shows through the noise (by a factor of .07 at the end of SD's schedule), so that a network can wait for a hint of the
    picture before it takes a caption for memorized; sampling begins without one. Their v is that of the same noise with the
    picture, which is not quite its own (the picture it stands for is .3 to 1.3 % too pale).
    """
    noise = torch.randn(batch.latents_BCHW.shape, generator=rng)
    t_B = draw_times(rng)
    blind_B = torch.zeros(len(t_B), dtype=torch.bool)
    if stage.blind:
        blind_B = (batch.memory_B >= 0) & (torch.rand(len(t_B), generator=rng) < stage.blind)
        t_B = torch.where(blind_B, torch.randint(stage.blind_from, 1000, (len(t_B),), generator=rng), t_B)
    a, s = alphas_T[t_B].sqrt()[:, None, None, None], (1 - alphas_T[t_B]).sqrt()[:, None, None, None]
    x = torch.where(blind_B[:, None, None, None], noise, a * batch.latents_BCHW + s * noise)
    return x, t_B, a * noise - s * batch.latents_BCHW
