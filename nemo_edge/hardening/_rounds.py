"""The rounds of a hardening: an attack on one memory goes on, then a step of the weights against what it has found; saved as they go.

Knows prompts, a checkpoint and the neurons that are silenced in the model that teaches, not where the result goes.
"""

from __future__ import annotations

__all__ = ["Round", "Run"]

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from nemo_edge.hardening._lessons import Memory, Others, draw_memory, draw_others, forget, keep
from nemo_edge.hardening._student import ROWS, Student, check_memory, copied, free_weights
from nemo_edge.measure.attacks.embedding import BATCH, EmbeddingSearch, from_noise
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.measure.readings import load_readings
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import bake_, silenced
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.settings import SamplingSettings, Start
from nemo_edge.sampling.loop import latent_shape
from nemo_edge.sampling.pipelines import eager_pipeline
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import write_atomically
from nemo_edge.system.journal import append, read_lines
from nemo_edge.system.memory import learned_rows_at_once, room_bytes
from nemo_edge.system.progress import Progress

_SAVED_EVERY = 25


class Round(BaseModel):
    """One round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    number: int
    memory: int
    start: Start
    steps: int
    """Of this attack, with those of rounds before."""
    attack_loss: float
    """What it got to: the mean over the steps of this round."""
    forget_loss: float
    keep_loss: float


class Run:
    """The rounds of one checkpoint, whose neurons are silenced first where `silence` says so."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        neurons: NeuronSet,
        listed: Sequence[Prompt],
        general: Sequence[str],
        settings: HardeningSettings,
        sampling: SamplingSettings,
        work: Path,
        inputs: str,
        *,
        silence: bool = True,
    ) -> None:
        self._checkpoint, self._neurons, self._settings = checkpoint, neurons, settings
        self._listed, self._general, self._sampling = listed, general, sampling
        self._work, self._inputs, self._silence = work, inputs, silence
        self._pipeline = eager_pipeline(checkpoint)
        objective, factor = Objective.of(checkpoint), checkpoint.config.factor
        _, height, width = latent_shape(checkpoint.config, sampling)
        self._size = height * factor, width * factor
        at_once = min(ROWS, learned_rows_at_once(self._size[0] * self._size[1], room_bytes(checkpoint.device)))
        check_memory(objective.unet, settings.weights, checkpoint.device)
        free = free_weights(objective.unet, settings.weights)
        with silenced(checkpoint.unet, neurons):
            teacher = copied(free)
        self._silence_()
        self.student = Student(objective, free, settings, at_once, teacher)
        self._at_once = min(BATCH, at_once)
        self._generator = torch.Generator().manual_seed(settings.seed)
        self._searches: dict[int, EmbeddingSearch] = {}

    def results(self, progress: Progress, tell: Callable[[list[Round]], None] = lambda rounds: None) -> list[Round]:
        """Go every round that is not gone, and return them all; `tell` is told those so far after each."""
        with silenced(self._checkpoint.unet, self._neurons):  # before anything is restored
            memories, others = self._draw(progress)
        rounds = self._restore(memories)
        with progress.task("harden", self._settings.rounds) as advance:
            advance(len(rounds))
            for number in range(len(rounds), self._settings.rounds):
                rounds.append(self._round(number, memories, others))
                append(self._work / "rounds.jsonl", rounds[-1])
                if (number + 1) % _SAVED_EVERY == 0:
                    self._save(number + 1)
                tell(rounds)
                advance(1)
        return rounds

    def _silence_(self) -> None:
        if self._silence:
            bake_(self._checkpoint.unet, self._neurons)

    def _draw(self, progress: Progress) -> tuple[list[Memory], Others]:
        with progress.task("draw what is learned", len(self._listed) + 1) as advance:
            memories = []
            for prompt in self._listed:
                assert prompt.image is not None
                picture_HW3 = next(iter(load_readings(prompt.image, self._size).values()))
                (latents_CHW,) = self._checkpoint.encode_pictures(picture_HW3[None])
                memories.append(draw_memory(self._pipeline, prompt.text, latents_CHW, self._settings.surrogates, self._sampling))
                advance(1)
            kept = [*self._general, *(prompt.text for prompt in self._listed)]
            others = draw_others(self._pipeline, kept, self._sampling, memories[0].latents_CHW)
            advance(1)
        return memories, others

    def _round(self, number: int, memories: Sequence[Memory], others: Others) -> Round:
        which, visit = number % len(memories), number // len(memories)
        start = self._settings.starts[visit // self._settings.restart % len(self._settings.starts)]
        if which not in self._searches or visit % self._settings.restart == 0:
            self._searches[which] = self._search(memories[which], start, others, number)
        search = self._searches[which]
        losses = [search.step() for _ in range(self._settings.attack_steps)]
        taught = forget(self.student.objective, memories[which], search.told, ROWS, self._generator)
        held = keep(self.student.objective, others, ROWS, self._generator)
        forget_loss, keep_loss = self.student.step([(taught, 1.0), (held, self._settings.keep)])
        self._silence_()
        return Round(
            number=number,
            memory=which,
            start=start,
            steps=(visit % self._settings.restart + 1) * self._settings.attack_steps,
            attack_loss=float(np.mean(losses)),
            forget_loss=forget_loss,
            keep_loss=keep_loss,
        )

    def _search(self, memory: Memory, start: Start, others: Others, number: int) -> EmbeddingSearch:
        """A new attack; each has its own noise."""
        if start == "unrelated":
            row = number % len(self._general)
            told = {name: value[row : row + 1].cpu().numpy() for name, value in others.told.items()}
        else:
            told = {name: value.cpu().numpy() for name, value in memory.told.items()}
        if start == "noise":
            told = from_noise(told, self._settings.seed + number)
        return EmbeddingSearch(self.student.objective, memory.latents_CHW, told, self._generator, self._at_once)

    def _save(self, rounds: int) -> None:
        state = {
            "inputs": self._inputs,
            "rounds": rounds,
            "weights": {name: value.detach() for name, value in self.student.learned.items()},
            "optimiser": self.student.optimiser.state_dict(),
            "generator": self._generator.get_state(),
            "searches": {which: search.state() for which, search in self._searches.items()},
        }
        torch.save(state, self._work / "state.tmp")
        (self._work / "state.tmp").replace(self._work / "state.pt")

    def _restore(self, memories: Sequence[Memory]) -> list[Round]:
        """The rounds that are gone, with weights, optimiser, attacks and chance as they were."""
        path, journal = self._work / "state.pt", self._work / "rounds.jsonl"
        if not path.is_file():
            shutil.rmtree(self._work, ignore_errors=True)
            self._work.mkdir(parents=True)
            return []
        state = torch.load(path, weights_only=True, map_location=self._checkpoint.device)
        if state["inputs"] != self._inputs:
            raise InputError(f"{self._work} was made of another model, or with other settings: give another --output, or delete it")
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.student.learned[name].copy_(value)
        self.student.write_()
        self.student.optimiser.load_state_dict(state["optimiser"])
        self._generator.set_state(state["generator"].cpu())
        for which, saved in state["searches"].items():
            start = {name: value.detach().cpu().numpy() for name, value in saved["told"].items()}
            search = EmbeddingSearch(self.student.objective, memories[which].latents_CHW, start, self._generator, self._at_once)
            search.restore(saved)
            self._searches[which] = search
        rounds = list(read_lines(Round, journal))[: state["rounds"]]
        write_atomically(journal, "".join(f"{each.model_dump_json()}\n" for each in rounds))
        return rounds
