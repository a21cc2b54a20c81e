"""An attack's jobs, one after the other: a picture of a group, attacked in one way; each is kept as soon as it is done.

Knows a subject, known pictures and settings; what the results come to is for others to say.
"""

from __future__ import annotations

__all__ = ["Run"]

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np

from nemo_edge.localization.paraphrases import paraphrases
from nemo_edge.measure.attacks.base import COUNTED, Attacked, Attempt, Group
from nemo_edge.measure.attacks.controls import Known, check_unseen
from nemo_edge.measure.attacks.embedding import BATCH, EmbeddingAttack, draw_found, from_noise
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.measure.attacks.subject import Subject
from nemo_edge.measure.attacks.text import TextSearch, Word, thrown_in, vocabulary
from nemo_edge.measure.mitigation import draw_prompts
from nemo_edge.measure.replication import copy_threshold, tiled_distances
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.settings import AttackKind, AttackSettings, Start, Way
from nemo_edge.sampling.loop import Pipeline
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_json
from nemo_edge.system.journal import append, read_lines
from nemo_edge.system.memory import learned_rows_at_once, room_bytes
from nemo_edge.system.progress import Advance, Progress

_UNRELATED = 16
"""Pictures of no memory from which the copy threshold comes where none was measured."""
_STARTS = get_args(Start)
_Key = tuple[str, str, str, str]


@dataclass(frozen=True)
class _Job:
    group: Group
    known: Known
    way: Way

    @property
    def key(self) -> _Key:
        return self.group, self.known.prompt, self.known.digest, self.way

    @property
    def attack(self) -> AttackKind:
        return "embedding" if self.way in _STARTS else "text"


@dataclass(frozen=True)
class Run:
    """Attacks what is open."""

    subject: Subject
    memories: tuple[Known, ...]
    never: tuple[Known, ...]
    settings: AttackSettings
    journal: Path
    """Where results are kept; those that it holds are taken."""
    progress: Progress

    def results(self) -> list[Attacked]:
        """Do every job that is not done. Raises `InputError` for a journal of something else, and as `check_unseen`."""
        known = dict(self._kept())
        check_unseen(self.never, self.memories, self.threshold[0])
        self._tell_plain()
        jobs = list(self._jobs())
        with self.progress.task("attack", sum(self._size(job) for job in jobs)) as advance:
            for job in jobs:
                done = _Counted(advance)
                if job.key not in known:
                    known[job.key] = self._twin(job, known) or self._attacked(job, done)
                    append(self.journal, known[job.key])
                advance(self._size(job) - done.count)
        return [known[job.key] for job in jobs]

    def _tell_plain(self) -> None:
        """A copy of a picture of nearly one colour counts only if it is near exact: of it an attack can hardly be seen to succeed."""
        pictures = [memory.path.name for memory in self.memories if memory.path and memory.limit(self.threshold[0]) < self.threshold[0] / 2]
        if pictures:
            named = ", ".join(sorted(set(pictures))[:3]) + (", …" if len(set(pictures)) > 3 else "")
            self.progress.note(f"training pictures of nearly one colour, of which only near exact copies count: {named}")

    @cached_property
    def inputs(self) -> str:
        """Hash of all that the results depend on beside the pictures and the ways."""
        settings = self.settings.model_dump(mode="json", exclude={"controls", "limit", "text", "starts"})
        return sha256_json(["attack", COUNTED, self.subject.content_hash(), settings, self.threshold[0], self.subject.size])

    @cached_property
    def threshold(self) -> tuple[float, int | None]:
        """The copy threshold, and the unrelated pairs that it comes from where no bundle was measured by one.

        Those are pictures of the unrelated prompt and training pictures, or where none is known, pictures of unrelated words.
        """
        s = self.subject
        if s.threshold is not None:
            return s.threshold, None
        pictures = [memory for memory in self.memories if memory.path is not None]
        if pictures:
            drawn = draw_prompts(s.eager, [self.settings.unrelated], range(_UNRELATED), s.sampling).pictures[0]
            distances = np.concatenate([memory.distances(drawn) for memory in pictures])
        else:
            texts = thrown_in("", self._words, self.settings.model_copy(update={"variants": _UNRELATED}))
            drawn = draw_prompts(s.eager, texts, [0], s.sampling).pictures[:, 0]
            distances = tiled_distances(drawn, drawn)[np.triu_indices(len(drawn), 1)]
        return copy_threshold(distances), len(distances)

    def _kept(self) -> Iterator[tuple[_Key, Attacked]]:
        """What the journal holds."""
        for each in read_lines(Attacked, self.journal) if self.journal.is_file() else ():
            if each.inputs != self.inputs:
                raise InputError(f"{self.journal} was made of another model, or with other settings: give another --output, or delete it")
            yield (each.group, each.prompt, each.picture, each.way), each

    def _jobs(self) -> Iterator[_Job]:
        """Of each kind the positive control first: where it fails, nothing else is worth the wait."""
        settings, searched = self.settings, [memory for memory in self.memories if memory.path is not None]
        if searched:
            yield from (_Job("unmitigated", memory, way) for way in settings.searches[:1] for memory in searched)
        for way in settings.text:
            yield from (_Job("memories", memory, way) for memory in self.memories if memory in searched or way not in settings.searches)
        yield from (_Job("never seen", control, way) for way in settings.searches for control in self.never)
        if not settings.starts:
            return
        yield from (_Job("unmitigated", memory, "unrelated") for memory in searched)
        yield from (_Job("memories", memory, start) for start in settings.starts for memory in searched)
        starts: list[Way] = list(dict.fromkeys("unrelated" if start == "prompt" else start for start in settings.starts))
        yield from (_Job("never seen", control, start) for start in starts for control in self.never)

    def _size(self, job: _Job) -> int:
        """What its progress goes up to: steps, batches or texts."""
        if job.attack == "embedding":
            return self.settings.steps
        return self.settings.batches if job.way in self.settings.searches else self.settings.variants

    def _twin(self, job: _Job, known: dict[_Key, Attacked]) -> Attacked | None:
        """The positive control's own result, where nothing is silenced and eager draws: it is the same attack."""
        if job.group != "memories" or len(self.subject.neurons) or self.subject.replay is not self.subject.eager:
            return None
        twin = known.get(replace(job, group="unmitigated").key)
        return twin.model_copy(update={"group": "memories"}) if twin else None

    def _attacked(self, job: _Job, advance: Advance) -> Attacked:
        plain = job.group == "unmitigated"
        draws = (self.subject.eager, None) if plain else (self.subject.replay, self.subject.mask)
        with nullcontext() if plain else self._silence():
            attempts = list(self._attempts(job, *draws, advance))
        return Attacked(
            inputs=self.inputs,
            attack=job.attack,
            way=job.way,
            group=job.group,
            prompt=job.known.prompt,
            picture=job.known.digest,
            attempts=tuple(attempts),
        )

    def _attempts(self, job: _Job, replay: Pipeline, mask: np.ndarray | None, advance: Advance) -> Iterator[Attempt]:
        def judged(pictures: np.ndarray, steps: int, loss: float | None, text: str = "") -> list[Attempt]:
            distances, limit = job.known.distances(pictures), job.known.limit(self.threshold[0])
            return [
                Attempt(steps=steps, seed=seed, text=text, loss=loss, distance=float(d), copied=bool(d <= limit))
                for seed, d in enumerate(distances)
            ]

        def drawn(text: str) -> np.ndarray:
            pictures: np.ndarray = draw_prompts(replay, [text], seeds, self.subject.sampling, mask).pictures[0]
            return pictures

        seeds = range(self.settings.seeds)
        if job.attack == "embedding":
            start, settings = self._start(job), self.settings
            run = EmbeddingAttack(self._objective(job), settings.steps, settings.seed, self._at_once, advance)
            for found in run(self._latents(job), start):
                yield from judged(draw_found(replay, found.told, seeds, self.subject.sampling, mask), found.steps, found.loss)
        elif job.way not in self.settings.searches:
            for text in self._changed(job):
                yield from judged(drawn(text), 0, None, text)
                advance(1)
        else:
            yield from self._searched(job, drawn, judged, advance)

    def _searched(
        self, job: _Job, drawn: Callable[[str], np.ndarray], judged: Callable[..., list[Attempt]], advance: Advance
    ) -> Iterator[Attempt]:
        """Until the picture comes back, which is what a search is for; the same text is not drawn twice."""
        search = TextSearch(
            self.subject.checkpoint,
            self._objective(job),
            self._latents(job),
            self._words,
            self.settings,
            self.subject.sampling.guidance,
            self._at_once,
            advance,
        )
        tried: set[str] = set()
        for found in search.greedy() if job.way == "greedy search" else search.random():
            if found.text in tried:
                continue
            tried.add(found.text)
            attempts = judged(drawn(found.text), found.batches, found.loss, found.text)
            yield from attempts
            if any(attempt.copied for attempt in attempts):
                return

    def _changed(self, job: _Job) -> tuple[str, ...]:
        """A prompt said otherwise; itself where it cannot be."""
        prompt, settings = job.known.prompt, self.settings
        if job.way == "paraphrases":
            made = tuple(each.text for each in paraphrases(prompt, settings.variants, settings.seed))
        else:
            made = thrown_in(prompt, self._words, settings)
        return made or (prompt,)

    def _silence(self) -> AbstractContextManager[Any]:
        return silenced(self.subject.checkpoint.unet, self.subject.neurons)

    def _objective(self, job: _Job) -> Objective:
        """Of the weights that are attacked: hardened ones, but by the positive control."""
        hardened = None if job.group == "unmitigated" else self.subject.hardened
        return Objective.of(hardened or self.subject.checkpoint)

    def _latents(self, job: _Job) -> Any:
        return self.subject.checkpoint.encode_pictures(self._picture(job)[None])[0]

    @cached_property
    def _words(self) -> tuple[Word, ...]:
        return vocabulary(self.subject.checkpoint)

    def _start(self, job: _Job) -> dict[str, np.ndarray]:
        """What the UNet is told at first."""
        s = self.subject
        told = s.eager.encode([job.known.prompt if job.way == "prompt" else self.settings.unrelated], s.size)
        told |= s.checkpoint.config.told_guidance(s.sampling.guidance, 1)
        return from_noise(told, self.settings.seed) if job.way == "noise" else told

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


class _Counted:
    """Tells of progress, and how much of it was told."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.count = advance, 0

    def __call__(self, done: int) -> None:
        self.count += done
        self.advance(done)
