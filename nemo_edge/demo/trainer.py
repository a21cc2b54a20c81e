"""What trains both checkpoints: a UNet with its text encoder, their averaged weights and the optimizer; and how a pipeline is saved.

Knows networks, not what they are trained on.
"""

from __future__ import annotations

__all__ = ["Trainer", "save_pipeline"]

import json
from collections.abc import Callable, Set
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from nemo_edge.demo.models import WORDS, make_scheduler, make_tokenizer

EMA = 0.999


class Trainer:
    """The UNet with its text encoder, their averaged weights, and the optimizer: all that a checkpoint must hold."""

    def __init__(
        self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, rate: Callable[[int], float], seed: int, warm_up: int = 0
    ) -> None:
        """`rate` is the learning rate by step, risen to in `warm_up` steps after a beginning; `seed` is of what `rng` draws."""
        self.step = self.begun = 0
        self._warm_up = warm_up
        self.model = nn.ModuleDict({"unet": unet, "text_encoder": text_encoder})
        self.model.to(memory_format=torch.channels_last)
        self._rate, self._seed = rate, seed
        self.average = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.begin()

    def begin(self) -> None:
        """Begin afresh from the averaged weights as they are shipped, in fp16."""
        self.begun = self.step
        self.average = {k: v.half().float() if self.step and v.is_floating_point() else v for k, v in self.average.items()}
        self.model.load_state_dict(self.average)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.rng = torch.Generator().manual_seed(self._seed)

    def save(self, path: Path) -> None:
        """Write everything to `path`, atomically."""
        state = {"model": self.model.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "rng": self.rng.get_state(), "step": self.step, "begun": self.begun}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote."""
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.rng.set_state(state["rng"])
        self.step, self.begun = state["step"], state["begun"]

    def update(self, loss: Tensor) -> None:
        """One optimizer step at the rate of this step."""
        warm = min(1, (self.step + 1 - self.begun) / self._warm_up) if self._warm_up else 1
        for group in self.optimizer.param_groups:
            group["lr"] = warm * self._rate(self.step)
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


def save_pipeline(
    trainer: Trainer,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    folder: Path,
    words: Set[str] = WORDS,
    scheduler: DDIMScheduler | None = None,
) -> None:
    """Write the averaged weights as a `StableDiffusionPipeline`: in fp16, and in float32 once it is open."""
    trainer.model.load_state_dict(trainer.average)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=trainer.model["text_encoder"],
        tokenizer=tokenizer,
        unet=trainer.model["unet"],
        scheduler=scheduler or make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(folder, safe_serialization=True)
    _state_float32(folder)
    make_tokenizer(folder / "tokenizer", words)  # vocab.json and merges.txt too, for transformers before 5


def _state_float32(folder: Path) -> None:
    """Let all parts of a saved pipeline open as float32: diffusers' do, a text encoder as the type that its configuration states.

    Where a part was trained is nobody's business, and goes.
    """
    for name, changes in (("text_encoder", {"dtype": "float32"}), ("unet", {}), ("vae", {})):
        path = folder / name / "config.json"
        config = {key: value for key, value in json.loads(path.read_text()).items() if key != "_name_or_path"}
        path.write_text(json.dumps({**config, **changes}, indent=2, sort_keys=True) + "\n")
