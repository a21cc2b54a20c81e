"""Judges what a picture shows: its object, colour, size, ground and place, beside what its caption names.

A small convolutional network, trained on drawn pictures as they come back from the VAE. Knows nothing of memories: shown the picture
of one, it says which object it sees. Shapes: B pictures, 3 colours, 64×64 pixels, values of -1 to 1.
"""

from __future__ import annotations

__all__ = ["RECOGNISER", "Recogniser", "load_recogniser", "train_recogniser"]

import itertools
import logging
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nemo_edge.demo.repeated.captions import COLOURS, GROUNDS, OBJECTS, PLACES, SIZES, Caption, general_caption
from nemo_edge.demo.repeated.pictures import WIDE, draw
from nemo_edge.demo.samples import encode, scaled

RECOGNISER = Path(__file__).parent / "recogniser.safetensors"

_NATURAL = "its own"
_HEADS: dict[str, tuple[str, ...]] = {
    "object": tuple(OBJECTS),
    "colour": (_NATURAL, *COLOURS),
    "size": SIZES,
    "ground": GROUNDS,
    "place": PLACES,
}
_WIDTHS = (3, 48, 96, 128, 160)
_UNNAMED = -100  # what cross_entropy leaves out
_PICTURES, _CYCLES, _BATCH, _RATE = 20_000, 12, 64, 2e-3

log = logging.getLogger("nemo_edge.demo.repeated.recogniser")


class Recogniser(nn.Module):
    """Four strided convolutions, and a linear head for each thing that a caption can name."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(_WIDTHS):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(_WIDTHS[-1], 48, 1), nn.SiLU(), nn.Flatten())
        self.heads = nn.ModuleDict({name: nn.Linear(48 * 4 * 4, len(words)) for name, words in _HEADS.items()})

    def forward(self, pictures_BCHW: Tensor) -> dict[str, Tensor]:
        """Return the logits [B, words] of each head."""
        features = self.body(pictures_BCHW)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def shown(self, pictures_BCHW: Tensor) -> list[Caption]:
        """What each picture shows, every word of it named but the colour of an object that has its own."""
        chosen = {name: logits.argmax(dim=1).tolist() for name, logits in self(pictures_BCHW).items()}
        words = [[_HEADS[name][index] for index in indices] for name, indices in chosen.items()]
        return [
            Caption(name, None if colour == _NATURAL else colour, size, ground, place)
            for name, colour, size, ground, place in zip(*words, strict=True)
        ]

    def adherence(self, pictures_BCHW: Tensor, captions: Sequence[Caption]) -> dict[str, float]:
        """The share of pictures that show what their captions name, by kind of word; "all" is of every word named."""
        right: dict[str, list[bool]] = {name: [] for name in (*_HEADS, "all")}
        for seen, caption in zip(self.shown(pictures_BCHW), captions, strict=True):
            named = [name for name in _HEADS if getattr(caption, name) is not None]
            found = {name: getattr(seen, name) == getattr(caption, name) for name in named}
            for name, is_right in found.items():
                right[name].append(is_right)
            right["all"].append(all(found.values()))
        return {name: float(np.mean(record)) for name, record in right.items() if record}


def load_recogniser(path: Path = RECOGNISER) -> Recogniser:
    """Open the shipped recogniser."""
    recogniser = Recogniser()
    recogniser.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    return recogniser.eval()


def _described(rng: random.Random) -> Caption:
    """A caption that names everything, its colour in three of four."""
    while True:
        colour = rng.choice((None, None, *COLOURS))
        ground = rng.choice(GROUNDS)
        if colour is None or colour != ground:
            return Caption(rng.choice(tuple(OBJECTS)), colour, rng.choice(SIZES), ground, rng.choice(PLACES))


def _words(caption: Caption) -> list[int]:
    """The place of each word among those of its head; an object without a colour has its own."""
    named = {name: getattr(caption, name) for name in _HEADS}
    named["colour"] = caption.colour or _NATURAL
    return [_UNNAMED if word is None else _HEADS[name].index(word) for name, word in named.items()]


def _pictures(vae: AutoencoderKL, captions: Sequence[Caption], rng: random.Random) -> Tensor:
    """As the VAE gives them back, [B, 3, 64, 64]."""
    drawn = torch.from_numpy(np.stack([np.asarray(draw(c, rng, WIDE)) for c in captions])).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        decoded = [vae.decode(part).sample.clamp(-1, 1) for part in encode(vae, drawn).split(100)]
    return torch.where(torch.rand(len(drawn), 1, 1, 1) < 0.6, torch.cat(decoded), scaled(drawn))


def _loss(recogniser: Recogniser, pictures_BCHW: Tensor, words_BH: Tensor) -> Tensor:
    heads = zip(recogniser(pictures_BCHW).values(), words_BH.T, strict=True)
    return torch.stack([F.cross_entropy(logits, words_B, ignore_index=_UNNAMED) for logits, words_B in heads]).sum()


def _mirrored(pictures_BCHW: Tensor, words_BH: Tensor) -> tuple[Tensor, Tensor]:
    """What is at the left is at the right then."""
    words_BH, column = words_BH.clone(), list(_HEADS).index("place")
    left, right = (words_BH[:, column] == PLACES.index(place) for place in ("left", "right"))
    words_BH[left, column], words_BH[right, column] = PLACES.index("right"), PLACES.index("left")
    return pictures_BCHW.flip(3), words_BH


def train_recogniser(vae: AutoencoderKL, path: Path, seed: int) -> Recogniser:
    """Train it, log how often it is right about pictures it has not seen, and save it in fp16."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    captions = [_described(rng) if rng.random() < 0.5 else general_caption(rng) for _ in range(_PICTURES)]
    pictures_BCHW = _pictures(vae, captions, rng)
    words_BH = torch.tensor([_words(caption) for caption in captions])
    held, recogniser = _PICTURES // 12, Recogniser()
    steps = _CYCLES * ((_PICTURES - held) // _BATCH)
    optimizer = torch.optim.AdamW(recogniser.parameters(), lr=_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        rows_B = torch.randint(held, _PICTURES, (_BATCH,))
        noisy_BCHW = pictures_BCHW[rows_B] + 0.1 * torch.rand(_BATCH, 1, 1, 1) * torch.randn(_BATCH, 3, 64, 64)
        shown = (noisy_BCHW, words_BH[rows_B])
        loss = _loss(recogniser, *(_mirrored(*shown) if step % 2 else shown))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            log.info("recogniser %d loss %.3f", step, loss.item())
    save_file({key: value.half() for key, value in recogniser.state_dict().items()}, path)
    log.info("right about unseen pictures: %s", load_recogniser(path).adherence(pictures_BCHW[:held], captions[:held]))
    return load_recogniser(path)
