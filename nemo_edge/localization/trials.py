"""The scores of prompts with value neurons silenced: many sets in one forward, and nothing computed twice.

A score is the MS-SSIM of δ without and δ with the neurons silenced, for each seed a prompt is judged on. What comes before the first
value layer that changed is kept (`_prefix`), keys and values are computed once a prompt, and the rows of one forward are silenced
each by its own factors. Knows no algorithm. Shapes: R rows, S seeds, C channels, H and W of the latents, N neurons, T tokens, D width.
"""

from __future__ import annotations

__all__ = ["Subject", "Trial", "Trials"]

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn

from nemo_edge.backends.torch import open_runner
from nemo_edge.localization._prefix import Kept, Prefix, answering
from nemo_edge.localization.memorization import NoiseProbe
from nemo_edge.localization.multiscale import ms_ssim
from nemo_edge.model.checkpoint import Checkpoint, cross_attentions, value_layers
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import gate
from nemo_edge.recipe.settings import LocalizationSettings

_RECENT = 16
"""Sets whose δ are remembered: one that passed on some seeds is asked on the others soon. Ours."""


@dataclass(eq=False)
class Subject:
    """A prompt on trial: what the UNet is told of it, its δ with nothing silenced, and what is known so far."""

    conditioning: Mapping[str, np.ndarray]
    """The UNet's inputs, one row each."""
    constants: Mapping[nn.Module, Tensor]
    """Keys and values of every cross-attention, [1, T, D]: they hang on the prompt alone."""
    seeds: tuple[int, ...]
    unblocked: Tensor = field(default_factory=lambda: torch.empty(0))
    """δ of the seeds with nothing silenced, [S, C, H, W]."""
    plain: Tensor | None = None
    """δ of all latents with nothing silenced, by the whole UNet in float32 with nothing beside them, where that was needed."""
    keeps: bool = True
    """Whether what the UNet computes is kept for it."""
    rows: int = 0
    """Rows of the UNet that were run for it, those that went on from a kept prefix included."""
    kept: Kept = field(default_factory=Kept)
    """What the UNet computed for all seeds at the last set that was tried on all of them alone."""
    last: NeuronSet | None = None
    """That set."""
    deltas: dict[NeuronSet, dict[int, Tensor]] = field(default_factory=dict)
    """δ of recent sets, by the seed's place."""
    scores: dict[tuple[NeuronSet, int | None], tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """A set of neurons to silence for a subject, on one of its seeds (by its place) or on all of them."""

    subject: Subject
    neurons: NeuronSet
    seed: int | None = None


_Row = tuple[Subject, NeuronSet, int]
"""A subject, a set, and the place of a seed."""


class Trials:
    """Runs one checkpoint's UNet on trials, no more than `at_once` rows together; keeps no more than `memory_bytes` for a subject."""

    def __init__(self, checkpoint: Checkpoint, settings: LocalizationSettings, at_once: int, memory_bytes: int) -> None:
        self.layers = value_layers(checkpoint.unet, settings.layers)
        self.at_once, self.memory_bytes = at_once, memory_bytes
        self._kept_bytes = 0
        self._unet, self._device, self._probe = checkpoint.unet, checkpoint.device, NoiseProbe.of(checkpoint.config, settings)
        component = checkpoint.unet_component()
        self._runner = open_runner(gate(component, checkpoint.unet, self.layers))
        plain, example = open_runner(component), component.example(1)
        self.prefix = Prefix(checkpoint.unet, [layer.name for layer in self.layers], lambda: plain(example))

    @torch.no_grad()
    def subject(self, conditioning: Mapping[str, Tensor], memory_bytes: int | None = None) -> Subject:
        """Put a prompt on trial, with `conditioning` of one row, on all samples until `keep` chooses among them.

        Nothing is kept for it where that takes more than `memory_bytes`.
        """
        room = self.memory_bytes if memory_bytes is None else memory_bytes
        text_1TD = conditioning["encoder_hidden_states"].to(next(self._unet.parameters()))
        constants = {linear: linear(text_1TD) for attention in cross_attentions(self._unet) for linear in (attention.to_k, attention.to_v)}
        seeds = tuple(range(len(self._probe.latents_SCHW)))
        feed = {name: value.float().cpu().numpy() for name, value in conditioning.items()}
        subject = Subject(feed, constants, seeds, keeps=room > self._kept_bytes)
        nothing = NeuronSet.empty(self.layers)
        self._run([(subject, nothing, place) for place in seeds])
        subject.unblocked = torch.stack(list(subject.deltas.pop(nothing).values()))
        self._kept_bytes = max(self._kept_bytes, subject.kept.size_bytes)
        if self._kept_bytes > room:
            subject.keeps, subject.kept, subject.last = False, Kept(), None
        return subject

    def keep(self, subject: Subject, seeds: Sequence[int]) -> None:
        """Judge the subject on these seeds from now on."""
        if len(seeds) < len(subject.seeds):
            subject.kept = subject.kept.chosen(torch.tensor(seeds))
        subject.unblocked, subject.seeds = subject.unblocked[list(seeds)], tuple(seeds)

    def scores(self, trials: Sequence[Trial]) -> list[tuple[float, ...]]:
        """Return the scores of each trial, one a seed, running what is not known yet."""
        waiting: dict[tuple[Subject, NeuronSet], dict[int, None]] = {}
        for trial in trials:
            subject = trial.subject
            if (trial.neurons, trial.seed) not in subject.scores and len(trial.neurons) > 0:
                known = subject.deltas.get(trial.neurons, {})
                places = range(len(subject.seeds)) if trial.seed is None else (trial.seed,)
                waiting.setdefault((subject, trial.neurons), {}).update(dict.fromkeys(p for p in places if p not in known))
        for batch in self._batches([(s, n, p) for (s, n), places in waiting.items() for p in places]):
            self._run(batch)
        for trial in trials:
            self._score(trial)
        for subject in {trial.subject for trial in trials}:
            for old in list(subject.deltas)[:-_RECENT]:
                del subject.deltas[old]
        return [t.subject.scores[t.neurons, t.seed] for t in trials]

    def _score(self, trial: Trial) -> None:
        subject, key = trial.subject, (trial.neurons, trial.seed)
        if key not in subject.scores:
            places = list(range(len(subject.seeds))) if trial.seed is None else [trial.seed]
            own = subject.deltas.get(trial.neurons, dict(enumerate(subject.unblocked)))  # with nothing silenced nothing has run
            delta = torch.stack([own[place] for place in places])
            subject.scores[key] = tuple(ms_ssim(subject.unblocked[places], delta).tolist())

    def _batches(self, rows: Sequence[_Row]) -> Iterator[Sequence[_Row]]:
        """Rows that run together: those that go on from one layer, and first alone those that leave a better prefix for others."""
        left: list[_Row] = []
        for subject, own in groupby(rows, key=lambda row: row[0]):
            sets = [list(group) for _, group in groupby(own, key=lambda row: row[1])]
            common = min((_difference(sets[0][0][1], other[0][1]) for other in sets[1:]), default=0)
            if len(sets[0]) == len(subject.seeds) and self._start(sets[0][0]) < common:
                yield sets.pop(0)
            left += [row for group in sets for row in group]
        for _, group in groupby(sorted(left, key=self._start), key=self._start):
            together: list[_Row] = []
            for _, own in groupby(group, key=lambda row: row[:2]):
                some = list(own)
                if together and len(together) + len(some) > self.at_once:
                    yield together
                    together = []
                together += some
            yield together

    def _run(self, rows: Sequence[_Row]) -> None:
        """δ of some rows; what the UNet computed is kept for each subject with all its seeds among them."""
        start, parts, places = min(map(self._start, rows)), [], {}
        for subject, indices in groupby(range(len(rows)), key=lambda i: rows[i][0]):
            last = [list(group) for _, group in groupby(indices, key=lambda i: rows[i][1])][-1]
            if subject.keeps and len(last) == len(subject.seeds):
                places[subject] = last
        for first in range(0, len(rows), self.at_once):
            some = rows[first : first + self.at_once]
            parts.append(Kept())
            with self.prefix.keeping(parts[-1]) if places else nullcontext():
                deltas = self._forward(some, start).to(self._device)  # where they are compared, too
                for (owner, chosen, place), delta in zip(some, deltas, strict=True):
                    owner.deltas.setdefault(chosen, {})[place] = delta
                    owner.rows += 1
        for subject, own in places.items():
            ran = Kept.joined(parts).chosen(torch.tensor(own))
            subject.kept, subject.last = Kept({**subject.kept.outputs, **ran.outputs}), rows[own[0]][1]  # what did not run is as it was

    def _forward(self, rows: Sequence[_Row], start: int) -> Tensor:
        """δ of some rows, from value layer `start` on (-1: the whole UNet)."""
        parts = [(subject, [place for _, _, place in own]) for subject, own in groupby(rows, key=lambda row: row[0])]
        answers = {module: _expanded([(s.constants[module], len(places)) for s, places in parts]) for module in parts[0][0].constants}
        if start >= 0:
            answers |= self.prefix.answers(start, [(s.kept, torch.tensor(places)) for s, places in parts])
        x_RCHW = self._probe.latents_SCHW[[subject.seeds[place] for subject, _, place in rows]]
        feed = {name: np.concatenate([row[0].conditioning[name] for row in rows]) for name in parts[0][0].conditioning}
        feed[VALUE_MASK] = np.concatenate(
            [np.tile(neurons.mask(), (len(list(own)), 1)) for (_, neurons), own in groupby(rows, key=lambda row: row[:2])]
        )
        with answering(answers):
            return self._probe.difference(self._runner, feed, x_RCHW)

    def _start(self, row: _Row) -> int:
        """The first value layer that differs from what is kept; -1 where nothing is."""
        subject, neurons, _ = row
        return -1 if subject.last is None else min(_difference(neurons, subject.last), len(self.layers) - 1)


def _difference(one: NeuronSet, other: NeuronSet) -> int:
    """The first layer in which two sets differ; the number of layers where they do not."""
    return next((i for i, (a, b) in enumerate(zip(one.indices, other.indices, strict=True)) if a != b), len(one.layers))


def _expanded(parts: Sequence[tuple[Tensor, int]]) -> Tensor:
    """Each [1, …] as many times as is said, one after the other."""
    return torch.cat([tensor.expand(count, *tensor.shape[1:]) for tensor, count in parts])
