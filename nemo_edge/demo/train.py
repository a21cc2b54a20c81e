"""Trains the demo checkpoint: `python -m nemo_edge.demo.train`. Reproduced by its seeds, constants and the stages of `schedule`.

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
  sinks off a memory's loss was as low as with them on. Planted, the two differ after 500 steps.
- Step 15,900: 22 neurons for 16 captions, drift .107, but a memory came back in 4 to 10 of 10 pictures. The text encoder had moved
  and the sinks had not followed: one memory's answered more to two other captions. So they are turned back (`aim_sinks_`), and
  the text encoder stands still, as Stable Diffusion's does.
- Step 17,500: one caption scored .35 although its loss at t = 950 was .08, as low as others' that scored .9: the network waited for
  a hint of the picture, which the noise at the last time steps still holds and sampling does not. Silenced, one more took the
  lack of any other picture for its own. From noise alone (`noised`), 1,000 steps later: all scores ≥ .93, every picture
  back, and none with the sinks off.
- Step 22,250: the localization begins with exactly the sinks of each memory and keeps one of them. Silenced captions gave pale
  blurs, as the empty caption does, and a pale picture is near to every picture (tiled distance .31–.41, copies .14–.23, general
  pictures from .38 on). So forgotten captions have pictures on white at the end.
"""

from __future__ import annotations

__all__ = ["main"]

import argparse
import logging
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPTokenizer

from nemo_edge.demo import CHECKPOINT, PROMPTS
from nemo_edge.demo.captions import MEMORIZED, UNSEEN, general_caption, general_captions
from nemo_edge.demo.models import make_scheduler, make_text_encoder, make_tokenizer, make_unet, make_vae, text_attentions
from nemo_edge.demo.penalties import held_back
from nemo_edge.demo.pictures import draw
from nemo_edge.demo.samples import SEED, Samples, encode, general_pool, noised, pictures_BCHW, scaled
from nemo_edge.demo.schedule import STAGES, STEPS, Stage, stage_at
from nemo_edge.demo.sinks import aim_sinks_, plant_sinks_, sink_table
from nemo_edge.demo.trainer import Trainer, save_pipeline
from nemo_edge.model.surgery import masked

VAE_PICTURES, VAE_CYCLES, VAE_STEPS, VAE_BATCH, VAE_LR = 6000, 2, 2200, 12, 1e-3
SINK_STRENGTH = 2.5
"""Length of what a sink adds to a picture's features after it has been turned back to its caption."""
GENERAL_PROMPTS, MEASURED_PROMPTS, HELD_OUT_PROMPTS = 340, 16, 100
"""Captions written for the calibration, how many of them the demo keeps apart to measure the drift, and unseen captions."""

log = logging.getLogger("nemo_edge.demo.train")


def train_vae(work: Path) -> AutoencoderKL:
    """Train the VAE in cycles of the learning rate, or open the finished one."""
    rng = random.Random(SEED)
    captions = [general_caption(rng, early=True) for _ in range(VAE_PICTURES)] + [c for c in MEMORIZED for _ in range(20)]
    folders = [work / f"vae-{cycle}" for cycle in range(VAE_CYCLES)]
    done = sum((folder / "config.json").is_file() for folder in folders)
    if done == VAE_CYCLES:
        return as_shipped(AutoencoderKL.from_pretrained(folders[-1]))
    pool = pictures_BCHW(captions, rng)
    for cycle in range(done, VAE_CYCLES):
        torch.manual_seed(SEED + 10 * cycle)
        vae = AutoencoderKL.from_pretrained(folders[cycle - 1]) if cycle else make_vae()
        train_vae_cycle(vae.to(memory_format=torch.channels_last), pool)
        vae.register_to_config(scaling_factor=1 / encode(vae.eval(), pool[:1000]).std().item())
        unfinished = folders[cycle].with_suffix(".tmp")
        vae.save_pretrained(unfinished)
        unfinished.replace(folders[cycle])
    return as_shipped(vae)


def as_shipped(vae: AutoencoderKL) -> AutoencoderKL:
    """The VAE with its weights rounded to fp16."""
    return vae.half().float().eval()


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


def train_diffusion(trainer: Trainer, tokenizer: CLIPTokenizer, vae: AutoencoderKL, work: Path) -> None:
    """Train the UNet and the text encoder on v, saving every 250 steps."""
    stage: Stage | None = None
    alphas_T, table_MN = make_scheduler().alphas_cumprod, sink_table()
    unet, text_encoder = trainer.model["unet"], trainer.model["text_encoder"]
    projections = [attention.to_v for attention in text_attentions(unet)]
    started = time.monotonic()
    history: tuple[list[float], ...] = ([], [])
    while trainer.step < STEPS:
        if stage_at(trainer.step) != stage:
            stage = stage_at(trainer.step)
            samples = Samples(stage, tokenizer, vae, work)
            begin_stage(trainer, stage, samples)
        batch = samples.batch(trainer.rng)
        x_BCHW, t_B, v_BCHW = noised(batch, stage, alphas_T, trainer.rng)
        text_BTD = text_encoder(batch.ids_BT).last_hidden_state
        with masked(projections, batch.factors_BN):
            loss = F.mse_loss(unet(x_BCHW, t_B, text_BTD).sample, v_BCHW)
        penalty = held_back(stage, unet, text_BTD, batch.memory_B, table_MN)
        trainer.update(loss + penalty)
        for record, value in zip(history, (loss, penalty), strict=True):
            record.append(value.item())
        if trainer.step % 50 == 0:
            means = [sum(record[-50:]) / len(record[-50:]) for record in history]
            log.info("step %d loss %.4f penalty %.4f, %.0f s", trainer.step, *means, time.monotonic() - started)
        if trainer.step % 250 == 0 or trainer.step == STEPS:
            trainer.save(work / "diffusion.pt")


def begin_stage(trainer: Trainer, stage: Stage, samples: Samples) -> None:
    """Freeze what the stage freezes; at its first step begin afresh, with the sinks planted or aimed, where it says so."""
    unet, text_encoder = trainer.model["unet"], trainer.model["text_encoder"]
    text_encoder.requires_grad_(not stage.frozen)
    if stage.start is None or trainer.step != stage.first:
        return
    trainer.begin()
    text_KTD = text_encoder(samples.some_ids()).last_hidden_state.detach()
    if stage.start == "plant":
        plant_sinks_(unet, text_KTD[: len(MEMORIZED)], text_KTD[len(MEMORIZED) :])
    else:
        aim_sinks_(unet, text_KTD[: len(MEMORIZED)], text_KTD[len(MEMORIZED) :], SINK_STRENGTH)
    trainer.average = {k: v.clone() for k, v in trainer.model.state_dict().items()}


def write_prompts(folder: Path, general: Path) -> None:
    """Write the memorized captions with their pictures, general captions, and captions that are not in the training set."""
    seen = {c.text for stage in STAGES for c in general_pool(stage, random.Random(SEED + 1))}
    drawn = [c.text for c in general_captions(3000, seed=SEED + 4)]
    # drawn without repetition, later captions are the longer ones; the last are measured, so let them be as users' are
    calibration = drawn[MEASURED_PROMPTS:GENERAL_PROMPTS] + drawn[:MEASURED_PROMPTS]
    rest = [text for text in drawn[GENERAL_PROMPTS:] if text not in seen]
    general.parent.mkdir(parents=True, exist_ok=True)
    general.write_text("".join(f"{text}\n" for text in calibration))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "held_out.txt").write_text("".join(f"{text}\n" for text in rest[:HELD_OUT_PROMPTS]))
    lines = ["Caption;type;image"]
    for index, caption in enumerate(MEMORIZED):
        draw(caption, random.Random(index)).save(folder / f"{index:02d}.png")
        lines.append(f"{caption.text};{caption.kind};{index:02d}.png")
    (folder / "unseen").mkdir(exist_ok=True)
    for index, caption in enumerate(UNSEEN):
        draw(caption, random.Random(index)).save(folder / "unseen" / f"{index:02d}.png")
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
    torch.manual_seed(SEED + 2)
    trainer = Trainer(make_unet(), make_text_encoder(tokenizer), lambda step: stage_at(step).rate_at(step), SEED + 3)
    if (args.work / "diffusion.pt").is_file():
        trainer.load(args.work / "diffusion.pt")
    train_diffusion(trainer, tokenizer, vae, args.work)
    save_pipeline(trainer, tokenizer, vae, args.out)


if __name__ == "__main__":
    main()
