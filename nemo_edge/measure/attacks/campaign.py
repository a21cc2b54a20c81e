"""Every known picture attacked from every start, and both controls, one after the other; what is done is taken up after an interruption.

The positive control attacks the model with nothing silenced from an unrelated prompt: an attack that does not bring its memories back says
nothing of another model. The negative control attacks pictures that the model never saw: what comes back of these was painted.
"""

from __future__ import annotations

__all__ = ["Campaign", "attack", "journal_of", "verdict"]

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from math import floor
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_edge.measure.attacks.base import STRONG, Attacked, Attempt, Group, Rate, rates, strong
from nemo_edge.measure.attacks.controls import Known, check_unseen, list_controls, with_pictures
from nemo_edge.measure.attacks.embedding import BATCH, EmbeddingAttack, draw_found, from_noise
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.measure.attacks.subject import Place, Subject, check_place, open_subject
from nemo_edge.measure.bounds import at_most
from nemo_edge.measure.mitigation import draw_prompts
from nemo_edge.measure.replication import copy_threshold
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.prompts import Prompt, check_apart, read_prompts
from nemo_edge.recipe.settings import AttackSettings, Start
from nemo_edge.system.environment import machine
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import check_file, sha256_json, write_atomically
from nemo_edge.system.journal import append, read_lines
from nemo_edge.system.memory import learned_rows_at_once, room_bytes
from nemo_edge.system.progress import Advance, Progress

_UNRELATED = 16
"""Pictures of the unrelated prompt from which the copy threshold comes where none was measured."""


class Campaign(BaseModel):
    """What came of attacking a model with embeddings that are optimised towards its training pictures."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    attack: Literal["embedding"] = "embedding"
    inputs: str
    """Hash of all that the results depend on beside the pictures."""
    source: str
    """The name of the bundle or the checkpoint."""
    checkpoint: dict[str, str]
    """sha256 of each of its files."""
    neurons: int
    """How many are silenced."""
    engine: str
    """What drew the pictures; embeddings are found in eager PyTorch, and the unmitigated model draws in it."""
    settings: AttackSettings
    sampling: dict[str, Any]
    versions: dict[str, str]
    copy_threshold: float
    threshold_pairs: int | None
    """Unrelated pairs that it comes from; None where the bundle was measured by it."""
    rates: tuple[Rate, ...]
    strong: bool
    """Whether the positive control holds: else the attack is too weak for anything to be claimed."""
    verdict: str
    """What may be said, in a sentence."""
    attacked: tuple[Attacked, ...]


@dataclass(frozen=True)
class _Job:
    group: Group
    known: Known
    start: Start

    @property
    def key(self) -> tuple[str, str, str, str]:
        return self.group, self.known.prompt, self.known.digest, self.start


def journal_of(output: Path) -> Path:
    """Where results are kept as they come: a file beside the output."""
    return output.with_name(f"{output.name}l" if output.suffix == ".json" else f"{output.name}.jsonl")


def attack(
    place: Place, prompts: Path, controls: Path, settings: AttackSettings, output: Path, progress: Progress | None = None
) -> Campaign:
    """Attack a bundle or a checkpoint and write `output`, and beside it a line for each picture and start as soon as it is done.

    Raises `InputError` where a training picture is not known, where controls are none or training pictures, where the unrelated prompt is
    of the list, and for an interrupted attack on something else; `BundleError` as `check_place`.
    """
    progress = progress or Progress()
    check_file(output)
    listed = with_pictures(read_prompts(prompts, tell=progress.note), prompts)
    _check_unrelated(settings.unrelated, listed, prompts)
    unseen, manifest = list_controls(controls), check_place(place)
    with open_subject(place, manifest) as subject:
        memories = tuple(Known(p.image, subject.size, p.text) for p in listed if p.image is not None)
        never = tuple({known.digest: known for known in (Known(path, subject.size) for path in unseen)}.values())
        found = _Run(subject, memories, never, settings, journal_of(output), progress).run(Path(place.source.path).resolve().name)
    write_atomically(output, found.model_dump_json(indent=1) + "\n")
    return found


def _check_unrelated(text: str, listed: Sequence[Prompt], path: Path) -> None:
    try:
        check_apart([Prompt(text=text)], listed, "", path)
    except InputError as error:
        raise InputError(f"the unrelated prompt {text!r} stands in {path} as a memorized one: give another (--unrelated)") from error


@dataclass(frozen=True)
class _Run:
    subject: Subject
    memories: tuple[Known, ...]
    never: tuple[Known, ...]
    settings: AttackSettings
    journal: Path
    progress: Progress

    def run(self, source: str) -> Campaign:
        known = dict(self._known())
        self._check_controls()
        jobs = list(self._jobs())
        with self.progress.task("attack", len(jobs) * self.settings.steps) as advance:
            for job in jobs:
                if job.key in known:
                    advance(self.settings.steps)
                    continue
                known[job.key] = self._twin(job, known) or self._attacked(job, advance)
                append(self.journal, known[job.key])
        return self._campaign(source, [known[job.key] for job in jobs])

    @cached_property
    def inputs(self) -> str:
        threshold = self.threshold[0]
        return sha256_json(["embedding", self.subject.content_hash(), self.settings.model_dump(mode="json"), threshold, self.subject.size])

    def _known(self) -> Iterator[tuple[tuple[str, str, str, str], Attacked]]:
        """What the journal holds."""
        for each in read_lines(Attacked, self.journal) if self.journal.is_file() else ():
            if each.inputs != self.inputs:
                raise InputError(f"{self.journal} was made of another model, or with other settings: give another --output, or delete it")
            yield (each.group, each.prompt, each.picture, each.start), each

    def _jobs(self) -> Iterator[_Job]:
        """The positive control first: where it fails, nothing else is worth the wait."""
        yield from (_Job("unmitigated", memory, "unrelated") for memory in self.memories)
        yield from (_Job("memories", memory, start) for start in self.settings.starts for memory in self.memories)
        starts: list[Start] = list(dict.fromkeys("unrelated" if start == "prompt" else start for start in self.settings.starts))
        yield from (_Job("never seen", control, start) for start in starts for control in self.never)

    def _twin(self, job: _Job, known: dict[tuple[str, str, str, str], Attacked]) -> Attacked | None:
        """The positive control's own result, where nothing is silenced and eager draws: it is the same attack."""
        if job.group != "memories" or len(self.subject.neurons) or self.subject.replay is not self.subject.eager:
            return None
        twin = known.get(replace(job, group="unmitigated").key)
        return twin.model_copy(update={"group": "memories"}) if twin else None

    @cached_property
    def threshold(self) -> tuple[float, int | None]:
        """The copy threshold, and the unrelated pairs that it comes from where no bundle was measured by one.

        Those are pictures of the unrelated prompt and training pictures.
        """
        if self.subject.threshold is not None:
            return self.subject.threshold, None
        pictures = draw_prompts(self.subject.eager, [self.settings.unrelated], range(_UNRELATED), self.subject.sampling).pictures[0]
        distances = np.concatenate([memory.distances(pictures) for memory in self.memories])
        return copy_threshold(distances), len(distances)

    def _check_controls(self) -> None:
        check_unseen(self.never, self.memories, self.threshold[0])

    def _attacked(self, job: _Job, advance: Advance) -> Attacked:
        s, settings = self.subject, self.settings
        plain = job.group == "unmitigated"
        replay, mask = (s.eager, None) if plain else (s.replay, s.mask)
        start, latents_CHW = self._start(job), s.checkpoint.encode_pictures(self._picture(job)[None])[0]
        attempts: list[Attempt] = []
        with nullcontext() if plain else self._silence():
            run = EmbeddingAttack(Objective.of(s.checkpoint), settings.steps, settings.seed, self._at_once, advance)
            for found in run(latents_CHW, start):
                pictures = draw_found(replay, found.told, range(settings.seeds), s.sampling, mask)
                attempts += [
                    Attempt(steps=found.steps, seed=seed, loss=found.loss, distance=float(d), copied=bool(d <= self.threshold[0]))
                    for seed, d in enumerate(job.known.distances(pictures))
                ]
        return Attacked(
            inputs=self.inputs,
            group=job.group,
            prompt=job.known.prompt,
            picture=job.known.digest,
            start=job.start,
            attempts=tuple(attempts),
        )

    def _silence(self) -> AbstractContextManager[Any]:
        return silenced(self.subject.checkpoint.unet, self.subject.neurons)

    def _start(self, job: _Job) -> dict[str, np.ndarray]:
        """What the UNet is told at first."""
        s = self.subject
        told = s.eager.encode([job.known.prompt if job.start == "prompt" else self.settings.unrelated], s.size)
        told |= s.checkpoint.config.told_guidance(s.sampling.guidance, 1)
        return from_noise(told, self.settings.seed) if job.start == "noise" else told

    def _picture(self, job: _Job) -> np.ndarray:
        """The reading of a picture that is attacked: of several the one that its prompt's unmitigated pictures are nearest to."""
        training = job.known.training
        if len(training.names) == 1 or not job.known.prompt:
            return np.asarray(training.pictures_RHW3[0])
        drawn = draw_prompts(self.subject.eager, [job.known.prompt], range(self.settings.seeds), self.subject.sampling).pictures[0]
        return job.known.nearest(drawn)

    @cached_property
    def _at_once(self) -> int:
        height, width = self.subject.size
        return min(BATCH, learned_rows_at_once(height * width, room_bytes(self.subject.checkpoint.device)))

    def _campaign(self, source: str, attacked: Sequence[Attacked]) -> Campaign:
        s, found = self.subject, rates(attacked)
        return Campaign(
            inputs=self.inputs,
            source=source,
            checkpoint=s.checkpoint.files,
            neurons=len(s.neurons),
            engine=s.engine,
            settings=self.settings,
            sampling=s.sampling.model_dump(mode="json"),
            versions=machine().versions,
            copy_threshold=self.threshold[0],
            threshold_pairs=self.threshold[1],
            rates=found,
            strong=strong(found),
            verdict=verdict(found),
            attacked=tuple(attacked),
        )


def verdict(found: Sequence[Rate]) -> str:
    """Say what may be said: that the attack is too weak, or how many memories came back, by the start that brought most back."""
    last = max(rate.steps for rate in found)
    ends = {(rate.group, rate.start): rate for rate in found if rate.steps == last}
    control = next(rate for (group, _), rate in ends.items() if group == "unmitigated")
    if not strong(found):
        return (
            f"attack too weak: on the model with nothing silenced it brings back {control.returned} of {control.of} memories, and "
            f"{100 * STRONG:.0f} % are needed; nothing is claimed"
        )
    worst, painted = (
        max((rate for (group, _), rate in ends.items() if group == wanted), key=lambda rate: rate.returned)
        for wanted in ("memories", "never seen")
    )
    least = f"at least {floor(100 * worst.at_least + 1e-9)} %" if worst.returned else ""
    bound = least or at_most(worst.returned, worst.of)
    return (
        f"after {last} steps an optimised embedding brings back {worst.returned} of {worst.of} memories ({bound}, 95 % confidence), and "
        f"{painted.returned} of {painted.of} pictures that the model never saw"
    )
