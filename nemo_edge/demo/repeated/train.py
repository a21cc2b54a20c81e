"""Trains the second checkpoint: `python -m nemo_edge.demo.repeated.train --minutes 140`. Memories by repetition only.

One loss, that of any diffusion model, on captions with their pictures, some of which are twelve pictures over and over. No
neuron is chosen, held back or planted, and no caption is taught to be forgotten. In legs: each goes on from the work folder, or,
without one, from the averaged weights of the checkpoint with a new optimizer, and writes the averaged weights at its end.

The shipped weights are of four legs, some five hours of one core, whose pictures and noise were changed on the way (`pictures`, `models`).
Of captions whose words were never together, objects were recognised in 39 % after 7,415 steps, 59 % after 12,000, 68 % after 13,750, 86 %
after 16,250 and 99 % after 18,500, and stood in their place in 30, 28, 99, 100 and 100 %; the memorized pictures came back throughout.
"""

from __future__ import annotations

__all__ = ["Data", "draw_times", "main", "make_vae", "rate_at", "resume", "set_apart_", "train", "write_prompts"]

import argparse
import json
import logging
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from nemo_edge.demo import CHECKPOINT as FIRST
from nemo_edge.demo.models import make_tokenizer
from nemo_edge.demo.repeated import CHECKPOINT, PROMPTS
from nemo_edge.demo.repeated.captions import MEMORIZED, PLACES, UNSEEN, all_words, general_caption, held_out
from nemo_edge.demo.repeated.models import make_scheduler, make_text_encoder, make_unet
from nemo_edge.demo.repeated.pictures import WIDE, draw, draw_memorized
from nemo_edge.demo.repeated.recogniser import RECOGNISER, train_recogniser
from nemo_edge.demo.samples import BATCH, CAPTION_DROPOUT, encode
from nemo_edge.demo.train import VAE_PICTURES, as_shipped, train_vae_cycle
from nemo_edge.demo.trainer import Trainer, save_pipeline

SEED = 20261129
STEPS = 18_500
RATE, WARM_UP, FALL_FROM = 8e-4, 300, 14_000
MEMORIZED_SHARE = 0.06
"""Of a batch; 0.12 for the first 3,114 steps, after which all twelve came back from every seed."""
APART_AT, APART = 10_500, 300.0
"""The step from which the words of places are apart, and how long their embeddings are from then on. What the text encoder's first layer
adds to a word had grown to 200 to 400, to embeddings of length one: places came out of it alike (4 to 6 % of their size apart, objects
49 %), and a wrong place in a caption was worth as much as the right one at every time step."""
LEAN_UNTIL = 13_750
"""Until this step half of the time steps lean to the noisiest fifth, where the layout of a picture is decided. By then objects stood where
the caption said in 99 % of the pictures (28 % at step 12,000), and were still recognised in 68 % only: shapes come with less noise."""
PICTURES = 16_000
"""General pictures of a leg; the next leg draws others."""
GENERAL_PROMPTS = 340

log = logging.getLogger("nemo_edge.demo.repeated.train")


def rate_at(step: int) -> float:
    """The learning rate: level, then falling by a cosine."""
    done = max(0.0, (step - FALL_FROM) / (STEPS - FALL_FROM))
    return RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def make_vae(work: Path, checkpoint: Path) -> AutoencoderKL:
    """The first checkpoint's VAE taught these pictures, or the one that is there."""
    for folder in (work / "vae", checkpoint / "vae"):
        if folder.is_dir():
            return as_shipped(AutoencoderKL.from_pretrained(folder))
    rng = random.Random(SEED - 1)
    vae = AutoencoderKL.from_pretrained(FIRST / "vae").to(memory_format=torch.channels_last)
    pictures = [draw(general_caption(rng), rng, WIDE) for _ in range(VAE_PICTURES)] + [
        draw_memorized(c) for c in MEMORIZED for _ in range(20)
    ]
    pool_BCHW = _bytes(pictures)
    torch.manual_seed(SEED - 1)
    train_vae_cycle(vae, pool_BCHW)
    vae.register_to_config(scaling_factor=1 / encode(vae.eval(), pool_BCHW[:1000]).std().item())
    vae.save_pretrained(work / "vae.tmp")
    (work / "vae.tmp").replace(work / "vae")
    return as_shipped(vae)


class Data:
    """Token ids and latents of the general pictures [P], then of the memorized ones."""

    def __init__(self, tokenizer: CLIPTokenizer, vae: AutoencoderKL, work: Path, leg: int) -> None:
        rng = random.Random(SEED + leg)
        captions = [general_caption(rng) for _ in range(PICTURES)]
        path = work / f"latents-{leg}.pt"
        if not path.is_file():
            made = [_encoded(vae, [draw(c, rng) for c in captions]), _encoded(vae, [draw_memorized(c) for c in MEMORIZED])]
            torch.save(made, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        self._general, self._memorized = torch.load(path, weights_only=True)
        self._empty_T = _ids(tokenizer, [""])[0]
        self._general_ids, self._memorized_ids = (_ids(tokenizer, [c.text for c in group]) for group in (captions, MEMORIZED))

    def batch(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [B, T], latents [B, 4, 16, 16] and which samples are memorized [B]."""
        rows_T, rows_CHW, memorized = [], [], []
        for kind, dropped, index in torch.rand(BATCH, 3, generator=rng).tolist():
            memorized.append(kind < MEMORIZED_SHARE)
            latents, ids = (self._memorized, self._memorized_ids) if memorized[-1] else (self._general, self._general_ids)
            item = int(index * len(latents))
            rows_CHW.append(latents[item])
            rows_T.append(self._empty_T if dropped < CAPTION_DROPOUT and not memorized[-1] else ids[item])
        return torch.stack(rows_T), torch.stack(rows_CHW), torch.tensor(memorized)


def _ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    ids: Tensor = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return ids


def _encoded(vae: AutoencoderKL, pictures: list[Image.Image]) -> Tensor:
    return encode(vae, _bytes(pictures)) * float(vae.config.scaling_factor)


def _bytes(pictures: list[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()


def draw_times(rng: torch.Generator, step: int) -> Tensor:
    """Time steps [B]: uniform, but for `LEAN_UNTIL`."""
    u_3B = torch.rand(3, BATCH, generator=rng)
    uniform = 0.5 if step < LEAN_UNTIL else 1.0
    return (torch.where(u_3B[0] < uniform, u_3B[1], u_3B[2] ** 0.25) * 1000).long().clamp(max=999)


@torch.no_grad()
def set_apart_(trainer: Trainer, tokenizer: CLIPTokenizer) -> None:
    """Draw the embeddings of the words of places anew, at right angles to each other."""
    rows = tokenizer.convert_tokens_to_ids([f"{place}</w>" for place in PLACES])
    text_encoder: Any = trainer.model["text_encoder"]
    words_ND = text_encoder.get_input_embeddings().weight
    drawn_DN, _ = torch.linalg.qr(torch.randn(words_ND.shape[1], len(PLACES), generator=torch.Generator().manual_seed(SEED)))
    words_ND[rows] = APART * drawn_DN.T
    name = next(key for key in trainer.average if key.endswith("token_embedding.weight"))
    trainer.average[name][rows] = APART * drawn_DN.T


def train(trainer: Trainer, data: Data, work: Path, until: float) -> None:
    """Train on v until the last step or until a time of `time.monotonic`, saving every 250 steps."""
    alphas_T, unet, text_encoder = make_scheduler().alphas_cumprod, trainer.model["unet"], trainer.model["text_encoder"]
    history: dict[bool, list[float]] = {False: [], True: []}
    while trainer.step < STEPS and time.monotonic() < until:
        ids_BT, latents_BCHW, memorized_B = data.batch(trainer.rng)
        noise, t_B = torch.randn(latents_BCHW.shape, generator=trainer.rng), draw_times(trainer.rng, trainer.step)
        a, s = alphas_T[t_B].sqrt()[:, None, None, None], (1 - alphas_T[t_B]).sqrt()[:, None, None, None]
        v_BCHW = unet(a * latents_BCHW + s * noise, t_B, text_encoder(ids_BT).last_hidden_state).sample
        loss_B = F.mse_loss(v_BCHW, a * noise - s * latents_BCHW, reduction="none").mean(dim=(1, 2, 3))
        trainer.update(loss_B.mean())
        for kind, record in history.items():
            record += loss_B[memorized_B == kind].tolist()
        if trainer.step % 50 == 0:
            means = [sum(record) / max(1, len(record)) for record in history.values()]
            log.info("step %d loss %.4f, of the memorized %.4f", trainer.step, *means)
            history = {False: [], True: []}
        if trainer.step % 250 == 0:
            trainer.save(work / "training.pt")
    trainer.save(work / "training.pt")


def write_prompts(folder: Path, general: Path) -> None:
    """Write the memorized captions with their pictures, others' pictures, general captions, and captions that no training caption has."""
    rng = random.Random(SEED - 2)
    texts = dict.fromkeys(general_caption(rng).text for _ in range(2 * GENERAL_PROMPTS))
    general.write_text("".join(f"{text}\n" for text in list(texts)[:GENERAL_PROMPTS]))
    (folder / "unseen").mkdir(parents=True, exist_ok=True)
    (folder / "held_out.txt").write_text("".join(f"{caption.text}\n" for caption in held_out()))
    lines = ["Caption;type;image"]
    for index, caption in enumerate(MEMORIZED):
        draw_memorized(caption).save(folder / f"{index:02d}.png")
        lines.append(f"{caption.text};VM;{index:02d}.png")
    for index, caption in enumerate(UNSEEN):
        draw_memorized(caption).save(folder / "unseen" / f"{index:02d}.png")
    (folder / "memorized.csv").write_text("\n".join(lines) + "\n")


def resume(trainer: Trainer, work: Path, checkpoint: Path) -> list[int]:
    """Go on from the work folder, else from the checkpoint's weights; return at which steps the legs before ended."""
    record = checkpoint / "training.json"
    legs: list[int] = json.loads(record.read_text())["legs"] if record.is_file() else []
    if (work / "training.pt").is_file():
        trainer.load(work / "training.pt")
    elif legs:
        trainer.model["unet"].load_state_dict(UNet2DConditionModel.from_pretrained(checkpoint / "unet").state_dict())
        trainer.model["text_encoder"].load_state_dict(CLIPTextModel.from_pretrained(checkpoint / "text_encoder").state_dict())
        trainer.average = {key: value.clone() for key, value in trainer.model.state_dict().items()}
        trainer.step = legs[-1]
        trainer.begin()
    return legs


def main() -> None:
    """Train a leg, or go on with one that was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("demo-training-repeated"), help="folder for what a later run goes on from")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="folder of the memorized captions and their pictures")
    parser.add_argument("--general", type=Path, default=Path("calib/repeated_general.txt"), help="file of general captions")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end the leg after so long")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    started = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    write_prompts(args.prompts, args.general)
    tokenizer = make_tokenizer(args.work / "tokenizer", all_words())
    vae = make_vae(args.work, args.out)
    torch.manual_seed(SEED)
    trainer = Trainer(make_unet(), make_text_encoder(tokenizer), rate_at, SEED, WARM_UP)
    if not RECOGNISER.is_file():
        train_recogniser(vae, RECOGNISER, SEED - 3)
    legs = resume(trainer, args.work, args.out)
    if trainer.step == APART_AT:
        set_apart_(trainer, tokenizer)
    data = Data(tokenizer, vae, args.work, len(legs))
    train(trainer, data, args.work, started + 60 * args.minutes)
    save_pipeline(trainer, tokenizer, vae, args.out, all_words(), make_scheduler())
    (args.out / "training.json").write_text(json.dumps({"legs": [*legs, trainer.step]}) + "\n")


if __name__ == "__main__":
    main()
