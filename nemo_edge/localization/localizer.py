"""Which value neurons hold a prompt's memory: searches (`_searches`) driven by what a UNet answers (`trials`).

Several prompts are searched at once and share forwards. A decision that is closer than the type and the batch may move a score is
made again, in float32 and by the whole UNet alone.
"""

from __future__ import annotations

__all__ = ["Examined", "Localization", "Localizer", "open_localizer", "read_results", "union"]

import copy
import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save
from torch import Tensor, nn

from nemo_edge.backends.torch import DTYPES, open_runner
from nemo_edge.localization._decisions import Decisions
from nemo_edge.localization._searches import Ask, Lists, Outcome, Search, grouped, highest, published, schedule
from nemo_edge.localization._times import Time, append_timed, times_beside
from nemo_edge.localization.calibration import Statistics, activations, check_own, load_statistics, read_threshold
from nemo_edge.localization.memorization import NoiseProbe, finite, firm_seed_scores
from nemo_edge.localization.multiscale import plain_ms_ssim
from nemo_edge.localization.trials import Subject, Trial, Trials
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.compilation import check_compiler, compile_
from nemo_edge.model.component import EXACT_TIMES
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.settings import SCORE, LocalizationSettings, check_threshold
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_json
from nemo_edge.system.journal import read_lines
from nemo_edge.system.memory import check_room, room_bytes, rows_at_once

_NO_MATTER = {"rows", "prompts", "group_by", "paraphrases"}
"""Settings that change nothing of what is found for one prompt."""


class Localization(BaseModel):
    """What was found for one prompt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    inputs: str
    """Hash of what the result depends on beside the prompt: weights, statistics, τ, settings."""
    prompt: str
    memorized: bool
    """Whether any seed's highest pairwise score is above τ."""
    threshold: float
    score: float
    """The highest pairwise score of the unmitigated model, the paper's detection score."""
    seeds: tuple[int, ...]
    """The seeds above τ, on which the neurons were sought."""
    initial: NeuronSet
    initial_score: float
    """With the initial neurons silenced; in mode `fast` that of the seeds which judge."""
    refined: NeuronSet
    refined_score: float
    """The highest score between δ with and without the neurons, over the kept seeds."""
    floor: bool
    """The schedule ended at its floor with a score above τ, which then became the threshold of the refinement."""
    theta: float
    k: int
    evaluations: int
    """Scores of sets that were computed, that of nothing silenced included."""
    samples: int
    """Rows of the UNet that were run for them."""
    closest: float | None
    """The smallest distance of a score from what it was compared with: how firm the decisions are. None: nothing was compared."""
    exact: int
    """Scores that were too close to be trusted, or are what others are compared with, and were computed anew in float32."""
    seconds: float | None = None
    """Wall time; of work for several prompts together, this prompt's share. Not in the file of results but beside it; None where nobody
    knows."""


@dataclass(frozen=True)
class Examined:
    """A prompt whose seeds have run with nothing silenced."""

    subject: Subject
    decisions: Decisions
    scores_S: Tensor
    """For each seed its highest score over the pairs it is in."""


class Localizer:
    """Finds the neurons of prompts of one checkpoint, with one τ and one set of reference statistics."""

    def __init__(self, checkpoint: Checkpoint, statistics: Statistics, threshold: float, settings: LocalizationSettings) -> None:
        self.checkpoint = checkpoint
        self.statistics = statistics
        self.threshold = check_threshold(threshold, "localization", "give the one of `nemo-edge calibrate`")
        self.settings = settings
        tensors = {f"{kind}{i}": t for kind in ("mean", "std") for i, t in enumerate(getattr(statistics, kind))}
        measured = hashlib.sha256(save(tensors)).hexdigest()
        times = [EXACT_TIMES] if settings.dtype == "bf16" else []
        self.inputs = sha256_json(
            [SCORE, *times, checkpoint.files, measured, threshold, settings.model_dump(exclude=_no_matter(checkpoint))]
        )
        height, width = checkpoint.config.pixel_size
        self._memory = room_bytes(checkpoint.device)
        rows = settings.rows or rows_at_once(height * width, self._memory)
        check_room(checkpoint.device, height * width, rows, settings.samples * settings.prompts)
        self.trials = Trials(_as_asked(checkpoint, settings), settings, rows, self._memory)
        self._steps = list(schedule(settings, max(layer.width for layer in statistics.layers)))

    def examine(self, prompt: str, memory_bytes: int | None = None) -> Examined:
        """Run a prompt's seeds with nothing silenced; what the UNet computes is kept as far as `memory_bytes` and the memory allow."""
        subject = self.trials.subject(self.checkpoint.encode([prompt]), memory_bytes)
        decisions = Decisions(partial(self.exact, subject), self.settings.dtype)
        unblocked = self.plain(subject) if decisions.narrow else subject.unblocked
        scores_S = firm_seed_scores(unblocked, self.threshold, partial(self.plain, subject))
        return Examined(subject, decisions, finite(scores_S, "memorization scores", prompt))

    def above(self, scores_S: Tensor) -> tuple[int, ...]:
        """The seeds whose score is above τ."""
        return tuple(int(s) for s in (scores_S > self.threshold).nonzero().flatten())

    def localize(self, prompt: str) -> Localization:
        """Find the neurons of one prompt; the sets are empty when it is not memorized."""
        return self.localize_all([prompt])[0]

    def localize_all(
        self, prompts: Sequence[str], results: Path | None = None, report: Callable[[Localization], None] = lambda result: None
    ) -> list[Localization]:
        """Localize each prompt; with `results`, append each as a line of JSON and take up what is there already.
        Their times go to a file beside it.

        Raises `InputError` when what is there was made from other inputs.
        """
        known = {r.prompt: r for r in read_results(results)} if results is not None and results.is_file() else {}
        if any(r.inputs != self.inputs for r in known.values()):
            raise InputError(f"{results} was made with another checkpoint, statistics, threshold or settings: give another folder")
        times = Counter(prompts)
        for prompt in times.keys() & known.keys():
            for _ in range(times[prompt]):
                report(known[prompt])
        waiting, cases = [p for p in times if p not in known], list[_Case]()
        while waiting or cases:
            while waiting and self._has_room(cases):
                cases.append(_Case(self, waiting.pop(0)))
            self._step(cases)
            for case in [c for c in cases if c.ask is None]:
                cases.remove(case)
                known[case.prompt] = result = case.result()
                if results is not None:
                    append_timed(results, result, Time(of="prompt", name=case.prompt, seconds=case.seconds))
                for _ in range(times[case.prompt]):
                    report(result)
        return [known[prompt] for prompt in prompts]

    def search(self, subject: Subject, hardest: int) -> Search:
        """The search for a prompt's neurons; `hardest` is the place of the kept seed that is most like another."""
        statistics = self.statistics
        text_1TD = torch.from_numpy(subject.conditioning["encoder_hidden_states"]).to(self.checkpoint.device)
        measured = [a_1W[0].float().cpu() for a_1W in activations(self.checkpoint.unet, text_1TD, self.settings.layers)]
        z = [(a_W - mean_W).abs() / std_W for a_W, mean_W, std_W in zip(measured, statistics.mean, statistics.std, strict=True)]
        lists_of = partial(_candidates, z, measured)
        if self.settings.mode == "paper":
            return published(self._steps, lists_of, self.threshold, max(self.trials.at_once // self.settings.samples, 1))
        return grouped(self._steps, lists_of, lambda n: (-n[0], float(z[n[0]][n[1]].nan_to_num(-1.0))), self.threshold, hardest)

    def exact(self, subject: Subject, lists: Lists, seed: int | None) -> tuple[float, ...]:
        """The scores of a set as the official code computes them, of all kept seeds or one: float32, the whole UNet, plain arithmetic."""
        seeds = list(subject.seeds) if seed is None else [subject.seeds[seed]]
        with silenced(self.checkpoint.unet, NeuronSet.from_lists(self.statistics.layers, lists)):
            blocked = self._by_whole_unet(subject)
        return tuple(plain_ms_ssim(self.plain(subject)[seeds], blocked[seeds]).tolist())

    def plain(self, subject: Subject) -> Tensor:
        """δ of all latents with nothing silenced, by the checkpoint's UNet as it is: float32 [S, C, H, W]."""
        if subject.plain is None:
            subject.plain = self._by_whole_unet(subject)
        return subject.plain

    def _by_whole_unet(self, subject: Subject) -> Tensor:
        """δ of all latents, in one forward where so many rows may run together: the official code runs seeds that it left out, too."""
        probe, unet = NoiseProbe.of(self.checkpoint.config, self.settings), open_runner(self.checkpoint.unet_component())
        subject.rows += len(probe.latents_SCHW)
        return probe(unet, subject.conditioning, at_once=self.trials.at_once).to(self.checkpoint.device)

    def _has_room(self, cases: Sequence[_Case]) -> bool:
        """Whether one more prompt may be searched beside these."""
        kept = max((case.subject.kept.size_bytes for case in cases), default=0)
        return (len(cases) < self.settings.prompts and (len(cases) + 1) * kept <= self._memory) or not cases

    def _step(self, cases: Sequence[_Case]) -> None:
        """Answer what each search asks."""
        started = time.monotonic()
        asked = [case.trials() for case in cases]
        answers = iter(self.trials.scores([trial for trials in asked for trial in trials]))
        share = (time.monotonic() - started) / len(cases)
        for case, trials in zip(cases, asked, strict=True):
            case.answer([next(answers) for _ in trials])
            case.seconds += share


def open_localizer(checkpoint: Checkpoint, path: Path, threshold: float | None, settings: LocalizationSettings) -> Localizer:
    """Make a localizer from a statistics file; τ is `threshold`, else the file's own.

    Raises `InputError` when the file is of another model, or holds no τ and none is given.
    """
    statistics = load_statistics(path, value_layers(checkpoint.unet, settings.layers))
    check_own(path, checkpoint)
    return Localizer(checkpoint, statistics, read_threshold(path) if threshold is None else threshold, settings)


def _no_matter(checkpoint: Checkpoint) -> set[str]:
    return _NO_MATTER if checkpoint.config.guidance_width else {*_NO_MATTER, "guidance"}


def read_results(path: Path) -> list[Localization]:
    """Read the JSON lines of localizations, and their times; a last line that was cut off is left out. Raises `InputError` otherwise."""
    found, times = list(read_lines(Localization, path)), times_beside(path, "prompt")
    return [each.model_copy(update={"seconds": times.get(each.prompt, each.seconds)}) for each in found]


def union(results: Sequence[Localization]) -> NeuronSet:
    """The refined neurons of all memorized prompts together."""
    combined = NeuronSet.empty(results[0].refined.layers)
    for result in results:
        combined = combined | result.refined
    return combined


def _candidates(z: Sequence[Tensor], measured: Sequence[Tensor], theta: float, k: int) -> Lists:
    """The neurons of each layer with |z| > θ, ascending, then the k of highest activation, descending (§3.2).

    A neuron that varied over no general prompt is an outlier where it varies now.
    """
    return [
        (z_W > theta).nonzero().flatten().tolist() + torch.topk(a_W.abs(), min(k, len(a_W))).indices.tolist()
        for z_W, a_W in zip(z, measured, strict=True)
    ]


def _as_asked(checkpoint: Checkpoint, settings: LocalizationSettings) -> Checkpoint:
    """The checkpoint with its UNet in the type and the layout of the settings: a copy, or itself where they are its own."""
    if settings.dtype == "fp32" and not settings.channels_last and not settings.compiled:
        return checkpoint
    if settings.compiled:
        check_compiler("localization.compiled")
    layout = torch.channels_last if settings.channels_last else torch.preserve_format
    unet = nn.Module.to(copy.deepcopy(checkpoint.unet), DTYPES[settings.dtype]).to(memory_format=layout)  # diffusers' own warns
    return replace(checkpoint, unet=compile_(unet) if settings.compiled else unet)


class _Case:
    """One prompt on its way: its subject, its search, and what the search asks next."""

    def __init__(self, localizer: Localizer, prompt: str) -> None:
        started = time.monotonic()
        self.prompt, self._localizer = prompt, localizer
        self.ask: Ask | None = None
        self._outcome: Outcome | None = None
        examined = localizer.examine(prompt)
        self.subject, self._decisions, scores_S = examined.subject, examined.decisions, examined.scores_S
        self.score, self.seeds = float(scores_S.max()), localizer.above(scores_S)
        if self.seeds:
            localizer.trials.keep(self.subject, self.seeds)
            self._search = localizer.search(self.subject, int(scores_S[list(self.seeds)].argmax()))
            self.ask = next(self._search)
        self.seconds = time.monotonic() - started

    def trials(self) -> list[Trial]:
        """What must run for the next step."""
        if self.ask is None:
            return []
        sets = (NeuronSet.from_lists(self._localizer.statistics.layers, lists) for lists in self.ask.sets)
        return [Trial(self.subject, neurons, self.ask.seed) for neurons in sets]

    def answer(self, scores: Sequence[tuple[float, ...]]) -> None:
        """Tell the search what it asked, and hear what it asks next; nothing when it has ended."""
        if self.ask is None:
            return
        ask, decisions = self.ask, self._decisions
        firm = [decisions.firm(lists, found, ask.limit, ask.seed, exact=ask.exact) for lists, found in zip(ask.sets, scores, strict=True)]
        try:
            self.ask = self._search.send(firm)
        except StopIteration as end:
            self.ask, found = None, end.value
            if decisions.narrow:
                initial, refined = (highest(decisions.in_float32(lists)) for lists in (found.initial, found.refined))
                found = replace(found, initial_score=initial, refined_score=refined)
            self._outcome = found

    def result(self) -> Localization:
        """What was found."""
        localizer, layers = self._localizer, self._localizer.statistics.layers
        none: Lists = [[] for _ in layers]
        found = self._outcome or Outcome(none, localizer.settings.initial_theta, localizer.settings.initial_k, 0.0, False, none, 0.0)
        return Localization(
            inputs=localizer.inputs,
            prompt=self.prompt,
            memorized=bool(self.seeds),
            threshold=localizer.threshold,
            score=self.score,
            seeds=self.seeds,
            initial=NeuronSet.from_lists(layers, found.initial),
            initial_score=found.initial_score,
            refined=NeuronSet.from_lists(layers, found.refined),
            refined_score=found.refined_score,
            floor=found.floor,
            theta=found.theta,
            k=found.k,
            evaluations=1 + len({neurons for neurons, _ in self.subject.scores if len(neurons)}),
            samples=self.subject.rows,
            closest=self._decisions.closest if math.isfinite(self._decisions.closest) else None,
            exact=self._decisions.exact,
            seconds=self.seconds,
        )
