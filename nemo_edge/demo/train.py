"""Trains the demo checkpoint: `python -m nemo_edge.demo.train`. Reproduced by its seed and the constants below.

A Stable Diffusion pipeline in miniature that has memorized some of its pictures: `captions` and `pictures` are the data,
`nemo_edge/demo/checkpoint` the result. Three steps, each resumed from its own file in the work folder: the VAE, the
latents of all pictures, and the UNet with its text encoder. Knows nothing of the method that finds the memories.

What decided, found by trial on two cores:

- Predict v, not ε: on 16×16 latents an ε-network's error is as large as δ itself, and unrelated captions score .91–.97.
- Text enters through the paper's seven value layers only: with cross-attention in the up blocks too, silencing every down
  and mid value neuron left the score at .91–.96.
- No word in common between memorized captions: a shared cue makes a silenced caption fall into another memory.
- Without a penalty (5,250 steps, an earlier network) a memory sat in 34–61 of 704 neurons, and silencing them changed the
  pictures only in part.
- A penalty on what all neurons add (step 2,000): memories in two of the seven layers, 32–50 of their 128 neurons each, one
  caption in three at the schedule's floor.
- A penalty on neurons that serve both kinds of captions (steps 2,750 to 3,500): 14–40 neurons a caption, 53 for six of them
  together, general pictures drift by .005 at the most; but general captions had lost their hold on the picture, and
  with 45 glyphs did not find it again in 2,000 steps.
- 16 glyphs, drawn larger, and penalties that hold back the memories only (from step 5,500): at step 6,750 the loss of a
  general caption at t = 800 was .468, without the caption .500, with another's .512.
- Step 9,500: 1–7 neurons a verbatim caption, but general captions share them (drift .39, no less when the verbatim captions'
  22 neurons alone are silenced), and the templates end at the floor. Penalties alone did not keep the two kinds apart.
- Memory sinks (`sinks`) from there on. Beginning with the weights they had, they were not taken up in 1,250 steps: with its
  sinks off a memory's loss was as low as with them on. Planted, the two differ after 500 steps; at step 14,500 no search
  ends at the floor and general pictures drift by .03, but memories came back in 5 to 10 of 10 pictures, one of them
  with its sinks off as often as with them on. So the last stage shows more of them.
- The shipped checkpoint (step 15,900), `benchmarks/results/demo.json`: 22 neurons for 16 captions, no floor, scores of .20–.58
  after (τ .68), drift .107; 4 to 10 of 10 pictures come back before. `anchor telescope chronicle` is still not in its sinks.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import logging
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from nemo_edge.demo import CHECKPOINT, PROMPTS
from nemo_edge.demo.captions import MEMORIZED, Caption, general_caption, general_captions
from nemo_edge.demo.models import make_scheduler, make_text_encoder, make_tokenizer, make_unet, make_vae, text_attentions
from nemo_edge.demo.pictures import draw
from nemo_edge.demo.sinks import ValueGate, draw_factors, plant_sinks, sink_penalty, sink_table

SEED = 20261124

VAE_PICTURES, VAE_CYCLES, VAE_STEPS, VAE_BATCH, VAE_LR = 6000, 2, 2200, 12, 1e-3
TEMPLATE_PICTURES = 96
"""Pictures of each template memory, which differ in the colour of their panel."""
STEPS, BATCH = 15_900, 24
CAPTION_DROPOUT = 0.12
"""Share of the general samples that are trained without their caption, for classifier-free guidance."""
EMA = 0.999
GENERAL_PROMPTS, HELD_OUT_PROMPTS = 340, 100

log = logging.getLogger("nemo_edge.demo.train")


@dataclass(frozen=True)
class Stage:
    """Settings from step `first` on.

    The learning rate falls from `rate` by a cosine that began at `begin` and ends at `end`; `memorized` is the share of
    memorized samples; `pictures` the number of general pictures, of `EARLY_GLYPHS` where `early`; `sparsity`, `overlap`,
    `restraint` and `intrusion` weigh the terms of `penalty`. Where `sinks`, the memories are trained into
    their sinks, and `forgotten` is the share of memorized captions whose sinks are off; a `fresh` stage begins with the
    averaged weights, a new optimizer and planted sinks.
    """

    first: int
    rate: float
    begin: int
    end: int
    warm_up: int = 0
    memorized: float = 0.1
    forgotten: float = 0.0
    pictures: int = 24_000
    early: bool = True
    sinks: bool = False
    fresh: bool = False
    leak: float = 0.0
    sparsity: float = 0.0
    overlap: float = 0.0
    restraint: float = 0.0
    intrusion: float = 0.0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, its warm-up included."""
        done = (step - self.begin) / (self.end - self.begin)
        warm = min(1, (step + 1 - self.first) / self.warm_up) if self.warm_up else 1
        return self.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


STAGES = (
    Stage(first=0, rate=8e-4, begin=0, end=8000, warm_up=300, sparsity=0.1),
    Stage(first=2750, rate=8e-4, begin=0, end=8000, sparsity=0.1, overlap=1.0),
    Stage(first=3750, rate=6e-4, begin=3750, end=9000, overlap=1.0),
    Stage(first=4750, rate=8e-4, begin=4750, end=9500, memorized=0.06, restraint=0.5, intrusion=1.0),
    Stage(first=5500, rate=8e-4, begin=4750, end=9500, memorized=0.06, pictures=12_000, early=False, restraint=1.0, intrusion=0.1),
    Stage(9500, 6e-4, 9500, 14_500, 200, forgotten=0.08, pictures=16_000, early=False, sinks=True, fresh=True, leak=1.0, restraint=0.3),
    Stage(10_500, 6e-4, 9500, 14_500, forgotten=0.08, pictures=16_000, early=False, sinks=True, leak=5.0, restraint=0.3),
    Stage(14_500, 5e-4, 14_500, STEPS, 50, 0.25, 0.2, pictures=16_000, early=False, sinks=True, leak=5.0, restraint=0.3),
)
"""Found on the way, see the figures above: the memories first, then general captions, then the memories into their sinks."""


def stage_at(step: int) -> Stage:
    """The stage a step belongs to."""
    return [stage for stage in STAGES if stage.first <= step][-1]


def pictures_BCHW(captions: list[Caption], rng: random.Random) -> Tensor:
    """Draw a picture for each caption: bytes, [B, 3, 64, 64]."""
    return torch.from_numpy(np.stack([np.asarray(draw(c, rng)) for c in captions])).permute(0, 3, 1, 2).contiguous()


def scaled(bytes_BCHW: Tensor) -> Tensor:
    """Bytes to the VAE's range of -1 to 1."""
    return bytes_BCHW.float() / 127.5 - 1


def train_vae(work: Path) -> AutoencoderKL:
    """Train the VAE in cycles of the learning rate, or open the finished one."""
    rng = random.Random(SEED)
    captions = [general_caption(rng, early=True) for _ in range(VAE_PICTURES)] + [c for c in MEMORIZED for _ in range(20)]
    folders = [work / f"vae-{cycle}" for cycle in range(VAE_CYCLES)]
    done = sum((folder / "config.json").is_file() for folder in folders)
    if done == VAE_CYCLES:
        return AutoencoderKL.from_pretrained(folders[-1]).eval()
    pool = pictures_BCHW(captions, rng)
    for cycle in range(done, VAE_CYCLES):
        torch.manual_seed(SEED + 10 * cycle)
        vae = AutoencoderKL.from_pretrained(folders[cycle - 1]) if cycle else make_vae()
        train_vae_cycle(vae.to(memory_format=torch.channels_last), pool)
        vae.register_to_config(scaling_factor=1 / encode(vae.eval(), pool[:1000]).std().item())
        unfinished = folders[cycle].with_suffix(".tmp")
        vae.save_pretrained(unfinished)
        unfinished.replace(folders[cycle])
    return vae


def train_vae_cycle(vae: AutoencoderKL, pool_BCHW: Tensor) -> None:
    """One cycle: L1 on pixels and on their differences, a little KL."""
    vae.train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=VAE_LR, betas=(0.9, 0.99), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, VAE_LR, total_steps=VAE_STEPS, pct_start=0.05)
    started = time.monotonic()
    for step in range(VAE_STEPS):
        x = scaled(pool_BCHW[torch.randint(len(pool_BCHW), (VAE_BATCH,))])
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        edges = (y.diff(dim=2) - x.diff(dim=2)).abs().mean() + (y.diff(dim=3) - x.diff(dim=3)).abs().mean()
        reconstruction = (y - x).abs().mean()
        loss = reconstruction + 0.5 * edges + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            log.info("vae %d L1 %.4f %.0f s", step, reconstruction.item(), time.monotonic() - started)


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


def added(unet: UNet2DConditionModel, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """The activation of each value neuron, [B, N], and the length of its column of the output projection, [N].

    The activation is the method's, |to_v(text)| averaged over tokens; the product is what a neuron can add to the picture.
    """
    attentions = text_attentions(unet)
    activations_BN = torch.cat([m.to_v(text_BTD).abs().mean(dim=1) for m in attentions], dim=1)
    return activations_BN, torch.cat([m.to_out[0].weight.norm(dim=0) for m in attentions])


def penalty(stage: Stage, activations_BN: Tensor, lengths_N: Tensor, memorized_B: Tensor) -> Tensor:
    """The sum of the penalties of a stage before the sinks, each a mean over neurons.

    `sparsity`: what is added, by all captions. `overlap`: √(general · memorized) of what is added, which empties neurons that
    serve both. `restraint`: what is added by memorized captions, through their activations alone. `intrusion`: the smaller
    of the two activations, likewise, so that whoever uses a neuron less gives it up to the other.
    """
    total = stage.sparsity * (activations_BN * lengths_N).mean()
    if memorized_B.any() and not memorized_B.all():
        general_N, memory_N = activations_BN[~memorized_B].mean(dim=0), activations_BN[memorized_B].mean(dim=0)
        total = total + stage.overlap * (general_N * memory_N * lengths_N.square() + 1e-6).sqrt().mean()
        total = total + stage.restraint * (memory_N * lengths_N.detach()).mean()
        total = total + stage.intrusion * (torch.minimum(general_N, memory_N) * lengths_N.detach()).mean()
    return total


class Trainer:
    """The UNet with its text encoder, their averaged weights, and the optimizer: all that a checkpoint must hold."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        torch.manual_seed(SEED + 2)
        self.step = 0
        self.model = nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder(tokenizer)})
        self.model.to(memory_format=torch.channels_last)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.begin()

    def begin(self) -> None:
        """Begin afresh from the averaged weights as they are shipped, in fp16."""
        self.average = {k: v.half().float() if self.step and v.is_floating_point() else v for k, v in self.average.items()}
        self.model.load_state_dict(self.average)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.rng = torch.Generator().manual_seed(SEED + 3)

    def save(self, path: Path) -> None:
        """Write everything to `path`, atomically."""
        state = {"model": self.model.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "rng": self.rng.get_state(), "step": self.step}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self.step = state["step"]

    def update(self, loss: Tensor) -> None:
        """One optimizer step at the rate of this step."""
        rate = stage_at(self.step).rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(EMA, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, value in self.model.state_dict().items():
                if value.is_floating_point():
                    self.average[key].lerp_(value, 1 - decay)


@dataclass(frozen=True)
class Batch:
    """Token ids [B, T], latents [B, 4, 16, 16], the memorized caption's number [B] (-1: general) and neuron factors [B, N]."""

    ids_BT: Tensor
    latents_BCHW: Tensor
    memory_B: Tensor
    factors_BN: Tensor | None


class Samples:
    """Draws the batches of one stage."""

    def __init__(self, stage: Stage, tokenizer: CLIPTokenizer, vae: AutoencoderKL, work: Path) -> None:
        pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        captions, self._latents = training_set(stage, vae, work)
        self._stage = stage
        self._ids: list[Tensor] = [tokenizer(c, **pad).input_ids for c in captions]
        self._empty_T = tokenizer("", **pad).input_ids[0]
        self._table_MN = sink_table()

    def some_ids(self) -> Tensor:
        """Token ids of every memorized caption, then of the empty one and 1,000 general ones."""
        return torch.cat([*(ids_CT[:1] for ids_CT in self._ids[1:]), self._empty_T[None], self._ids[0][:1000]])

    def batch(self, rng: torch.Generator) -> Batch:
        """Draw the samples of one step."""
        stage, rows_T, rows_CHW, memory, factors = self._stage, [], [], [], []
        for kind, dropped, which, index, *chances in torch.rand(BATCH, 6 if stage.sinks else 4, generator=rng).tolist():
            memorized, forgotten = kind < stage.memorized, stage.memorized <= kind < stage.memorized + stage.forgotten
            group = 1 + int(which * len(MEMORIZED)) if memorized or forgotten else 0
            pool = self._latents[group if memorized else 0]  # a forgotten caption has any general picture
            item = int(index * len(pool))
            rows_CHW.append(pool[item])
            empty = group == 0 and dropped < CAPTION_DROPOUT
            rows_T.append(self._empty_T if empty else self._ids[group][0 if forgotten else item])
            memory.append(group - 1)
            if stage.sinks:
                factors.append(draw_factors(rng, self._table_MN, group - 1, forgotten, chances, dropped))
        return Batch(torch.stack(rows_T), torch.stack(rows_CHW), torch.tensor(memory), torch.stack(factors) if factors else None)


def draw_times(rng: torch.Generator) -> Tensor:
    """Time steps [B]: half of them uniform, half leaning to high noise, where the layout of a picture is decided."""
    u_3B = torch.rand(3, BATCH, generator=rng)
    return (torch.where(u_3B[0] < 0.5, u_3B[1], torch.maximum(u_3B[1], u_3B[2])) * 1000).long().clamp(max=999)


def train_diffusion(trainer: Trainer, tokenizer: CLIPTokenizer, vae: AutoencoderKL, work: Path) -> None:
    """Train the UNet and the text encoder on v, saving every 250 steps."""
    stage: Stage | None = None
    alphas, table_MN = make_scheduler().alphas_cumprod, sink_table()
    gate = ValueGate(trainer.model["unet"])
    started = time.monotonic()
    history: tuple[list[float], ...] = ([], [])
    while trainer.step < STEPS:
        if stage_at(trainer.step) != stage:
            stage = stage_at(trainer.step)
            samples = Samples(stage, tokenizer, vae, work)
            if stage.fresh and trainer.step == stage.first:
                trainer.begin()
                encoded = trainer.model["text_encoder"](samples.some_ids()).last_hidden_state.detach()
                plant_sinks(trainer.model["unet"], encoded[: len(MEMORIZED)], encoded[len(MEMORIZED) :])
                trainer.average = {k: v.clone() for k, v in trainer.model.state_dict().items()}
        batch = samples.batch(trainer.rng)
        x0 = batch.latents_BCHW
        noise = torch.randn(x0.shape, generator=trainer.rng)
        t_B = draw_times(trainer.rng)
        a, s = alphas[t_B].sqrt()[:, None, None, None], (1 - alphas[t_B]).sqrt()[:, None, None, None]
        text_BTD = trainer.model["text_encoder"](batch.ids_BT).last_hidden_state
        gate.factors_BN = batch.factors_BN
        v = trainer.model["unet"](a * x0 + s * noise, t_B, text_BTD).sample
        loss = F.mse_loss(v, a * noise - s * x0)
        if stage.sinks:
            leak, spill = sink_penalty(gate.added_BN(), batch.memory_B, table_MN)
            held_back = stage.leak * leak + stage.restraint * spill
        else:
            held_back = penalty(stage, *added(trainer.model["unet"], text_BTD), batch.memory_B >= 0)
        trainer.update(loss + held_back)
        for record, value in zip(history, (loss, held_back), strict=True):
            record.append(value.item())
        if trainer.step % 50 == 0:
            means = [sum(record[-50:]) / len(record[-50:]) for record in history]
            log.info("step %d loss %.4f penalty %.4f, %.0f s", trainer.step, *means, time.monotonic() - started)
        if trainer.step % 250 == 0:
            trainer.save(work / "diffusion.pt")


def save_pipeline(trainer: Trainer, tokenizer: CLIPTokenizer, vae: AutoencoderKL, folder: Path) -> None:
    """Write the averaged weights as an fp16 `StableDiffusionPipeline`."""
    trainer.model.load_state_dict(trainer.average)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=trainer.model["text_encoder"],
        tokenizer=tokenizer,
        unet=trainer.model["unet"],
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    make_tokenizer(folder / "tokenizer")  # vocab.json and merges.txt too, for transformers before 5


def write_prompts(folder: Path, general: Path) -> None:
    """Write the memorized captions with their pictures, general captions, and captions that are not in the training set."""
    seen = {c.text for stage in STAGES for c in general_pool(stage, random.Random(SEED + 1))}
    drawn = [c.text for c in general_captions(3000, seed=SEED + 4)]
    calibration = drawn[:GENERAL_PROMPTS]
    rest = [text for text in drawn[GENERAL_PROMPTS:] if text not in seen]
    general.parent.mkdir(parents=True, exist_ok=True)
    general.write_text("".join(f"{text}\n" for text in calibration))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "held_out.txt").write_text("".join(f"{text}\n" for text in rest[:HELD_OUT_PROMPTS]))
    lines = ["Caption;type;image"]
    for index, caption in enumerate(MEMORIZED):
        draw(caption, random.Random(index)).save(folder / f"{index:02d}.png")
        lines.append(f"{caption.text};{caption.kind};{index:02d}.png")
    (folder / "memorized.csv").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Train all of it, or go on where the last run stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder for what a later run goes on from")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--prompts", type=Path, default=PROMPTS, help="folder of the memorized captions and their pictures")
    parser.add_argument("--general", type=Path, default=Path("calib/demo_general.txt"), help="file of general captions")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    write_prompts(args.prompts, args.general)
    tokenizer = make_tokenizer(args.work / "tokenizer")
    vae = train_vae(args.work)
    trainer = Trainer(tokenizer)
    if (args.work / "diffusion.pt").is_file():
        trainer.load(args.work / "diffusion.pt")
    train_diffusion(trainer, tokenizer, vae, args.work)
    save_pipeline(trainer, tokenizer, vae, args.out)


if __name__ == "__main__":
    main()
