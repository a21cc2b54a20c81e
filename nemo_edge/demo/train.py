"""Trains the demo checkpoint: `python -m nemo_edge.demo.train`. Reproduced by its seed and the constants below.

A Stable Diffusion pipeline in miniature that has memorized some of its pictures: `captions` and `pictures` are the data,
`nemo_edge/demo/checkpoint` the result. Three stages, each resumed from its own file in the work folder: the VAE, the
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
- The shipped checkpoint (step 9,500), `benchmarks/results/demo.json`: 1–7 neurons a verbatim caption, but general captions
  share them (drift .39, no less when the verbatim captions' 22 neurons alone are silenced), and the templates end at the
  floor. The penalties of the last stage were too weak to keep the two kinds of captions apart.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import json
import logging
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from nemo_edge.demo import CHECKPOINT, PROMPTS
from nemo_edge.demo.captions import COLOURS, EARLY_GLYPHS, MEMORIZED, Caption, general_caption, general_captions
from nemo_edge.demo.pictures import SIZE, draw

SEED = 20261124

VAE_PICTURES, VAE_CYCLES, VAE_STEPS, VAE_BATCH, VAE_LR = 6000, 2, 2200, 12, 1e-3
EARLY_POOL, POOL = 24_000, 12_000
"""General pictures of the first stages, and of the last one; each is seen four to eight times."""
TEMPLATE_PICTURES = 96
"""Pictures of each template memory, which differ in the colour of their panel."""
STEPS, BATCH, WARM_UP = 9500, 24, 300
CAPTION_DROPOUT = 0.12
"""Share of the general samples that are trained without their caption, for classifier-free guidance."""
EMA = 0.999
CONTEXT = 16
"""Tokens of a prompt."""
GENERAL_PROMPTS, HELD_OUT_PROMPTS = 340, 100

log = logging.getLogger("nemo_edge.demo.train")


@dataclass(frozen=True)
class Stage:
    """Settings from step `first` on.

    The learning rate falls from `rate` by a cosine that began at `begin` and ends at `end`; `memorized` is the share of
    memorized samples; `early` says whether the general ones are of `EARLY_GLYPHS`; `sparsity`, `overlap`, `restraint` and
    `intrusion` weigh the terms of `penalty`.
    """

    first: int
    rate: float
    begin: int
    end: int
    memorized: float = 0.1
    early: bool = True
    sparsity: float = 0.0
    overlap: float = 0.0
    restraint: float = 0.0
    intrusion: float = 0.0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, the warm-up of the first steps included."""
        done = (step - self.begin) / (self.end - self.begin)
        return self.rate * min(1, (step + 1) / WARM_UP) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


STAGES = (
    Stage(first=0, rate=8e-4, begin=0, end=8000, sparsity=0.1),
    Stage(first=2750, rate=8e-4, begin=0, end=8000, sparsity=0.1, overlap=1.0),
    Stage(first=3750, rate=6e-4, begin=3750, end=9000, overlap=1.0),
    Stage(first=4750, rate=8e-4, begin=4750, end=STEPS, memorized=0.06, restraint=0.5, intrusion=1.0),
    Stage(first=5500, rate=8e-4, begin=4750, end=STEPS, memorized=0.06, early=False, restraint=1.0, intrusion=0.1),
)
"""Found on the way, see the figures above: the memories first, in few neurons; then general captions, in the others."""


def stage_at(step: int) -> Stage:
    """The stage a step belongs to."""
    return [stage for stage in STAGES if stage.first <= step][-1]


def make_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write and open a CLIP tokenizer of CONTEXT tokens: one token a word of the captions, letters for all else."""
    words = {"a", "on", "background", *COLOURS, *EARLY_GLYPHS, *(w for c in MEMORIZED for w in c.text.split())}
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens, merges = [*letters, *(f"{c}</w>" for c in letters)], []
    for word in sorted(words):
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            pair = (parts.pop(-2), parts.pop(-1))
            parts.append("".join(pair))
            if parts[-1] not in tokens:
                tokens.append(parts[-1])
                merges.append(pair)
    merges.sort(key=lambda pair: len("".join(pair)))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}, indent=0) + "\n")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=CONTEXT)


def make_vae() -> AutoencoderKL:
    """A VAE of 4× reduction: 64×64 pixels ↔ 4×16×16 latents."""
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )
    nn.init.constant_(vae.quant_conv.bias.data[4:], -6.0)  # start with hardly any noise on the latents
    return vae


def make_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A CLIP text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        projection_dim=128,
    )
    return CLIPTextModel(config)


def make_unet() -> UNet2DConditionModel:
    """Stable Diffusion's UNet in miniature; text enters through the paper's seven value layers only."""
    return UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(64, 96, 128, 128),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) * 4,
        layers_per_block=2,
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction, as Stable Diffusion 2 has it."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


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


def training_set(vae: AutoencoderKL, path: Path, *, early: bool) -> tuple[list[list[str]], list[Tensor]]:
    """Captions and scaled latents: the general pool first, then each memorized caption with its pictures."""
    rng = random.Random(SEED + 1)
    general = [general_caption(rng, early=early) for _ in range(EARLY_POOL if early else POOL)]
    sets = [general, *([c] * (1 if c.kind == "VM" else TEMPLATE_PICTURES) for c in MEMORIZED)]
    if not path.is_file():
        made = [encode(vae, pictures_BCHW(s, rng)) * vae.config.scaling_factor for s in sets]
        torch.save(made, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)
    latents: list[Tensor] = torch.load(path, weights_only=True)
    return [[c.text for c in s] for s in sets], latents


def added(unet: UNet2DConditionModel, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """The activation of each value neuron, [B, N], and the length of its column of the output projection, [N].

    The activation is the method's, |to_v(text)| averaged over tokens; the product is what a neuron can add to the picture.
    The penalties on it stand in for scale: in a network of this size every neuron takes part in everything, while in
    Stable Diffusion a memory sits in a few of 5,760 neurons that general prompts hardly use.
    """
    attentions = [module for name, module in unet.named_modules() if name.endswith("attn2")]
    activations_BN = torch.cat([m.to_v(text_BTD).abs().mean(dim=1) for m in attentions], dim=1)
    return activations_BN, torch.cat([m.to_out[0].weight.norm(dim=0) for m in attentions])


def penalty(stage: Stage, activations_BN: Tensor, lengths_N: Tensor, memorized_B: Tensor) -> Tensor:
    """The sum of the penalties of a stage, each a mean over neurons.

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
        self.model = nn.ModuleDict({"unet": make_unet(), "text_encoder": make_text_encoder(tokenizer)})
        self.model.to(memory_format=torch.channels_last)
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=STAGES[0].rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.rng = torch.Generator().manual_seed(SEED + 3)
        self.step = 0

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


def draw_batch(trainer: Trainer, ids: list[Tensor], empty_T: Tensor, latents: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [B, T], latents [B, 4, 16, 16] and which of them are memorized [B] of one batch."""
    rows_T, rows_CHW, memory = [], [], []
    for memorized, dropped, which, index in torch.rand(BATCH, 4, generator=trainer.rng).tolist():
        group = 1 + int(which * len(MEMORIZED)) if memorized < stage_at(trainer.step).memorized else 0
        item = int(index * len(latents[group]))
        rows_CHW.append(latents[group][item])
        memory.append(group > 0)
        rows_T.append(empty_T if group == 0 and dropped < CAPTION_DROPOUT else ids[group][item])
    return torch.stack(rows_T), torch.stack(rows_CHW), torch.tensor(memory)


def draw_times(rng: torch.Generator) -> Tensor:
    """Time steps [B]: half of them uniform, half leaning to high noise, where the layout of a picture is decided."""
    u_3B = torch.rand(3, BATCH, generator=rng)
    return (torch.where(u_3B[0] < 0.5, u_3B[1], torch.maximum(u_3B[1], u_3B[2])) * 1000).long().clamp(max=999)


def train_diffusion(trainer: Trainer, tokenizer: CLIPTokenizer, vae: AutoencoderKL, work: Path) -> None:
    """Train the UNet and the text encoder on v, saving every 250 steps."""
    pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    ids: list[Tensor] = []
    latents: list[Tensor] = []
    early: bool | None = None
    empty_T = tokenizer("", **pad).input_ids[0]
    alphas = make_scheduler().alphas_cumprod
    started = time.monotonic()
    history: tuple[list[float], ...] = ([], [])
    while trainer.step < STEPS:
        stage = stage_at(trainer.step)
        if stage.early != early:
            early = stage.early
            captions, latents = training_set(vae, work / f"latents-{'early' if early else 'late'}.pt", early=early)
            ids = [tokenizer(c, **pad).input_ids for c in captions]
        ids_BT, x0, memorized_B = draw_batch(trainer, ids, empty_T, latents)
        noise = torch.randn(x0.shape, generator=trainer.rng)
        t_B = draw_times(trainer.rng)
        a, s = alphas[t_B].sqrt()[:, None, None, None], (1 - alphas[t_B]).sqrt()[:, None, None, None]
        text_BTD = trainer.model["text_encoder"](ids_BT).last_hidden_state
        v = trainer.model["unet"](a * x0 + s * noise, t_B, text_BTD).sample
        loss = F.mse_loss(v, a * noise - s * x0)
        held_back = penalty(stage, *added(trainer.model["unet"], text_BTD), memorized_B)
        trainer.update(loss + held_back)
        for values, value in zip(history, (loss, held_back), strict=True):
            values.append(value.item())
        if trainer.step % 50 == 0:
            means = [sum(values[-50:]) / len(values[-50:]) for values in history]
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
    rng = random.Random(SEED + 1)
    seen = {general_caption(rng).text for _ in range(POOL)}  # the pool of the last stage
    rng = random.Random(SEED + 1)
    seen |= {general_caption(rng, early=True).text for _ in range(EARLY_POOL)}
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
