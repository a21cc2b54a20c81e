"""Which value neurons hold a prompt's memory: initial selection, then refinement (mode `paper`).

The decisions are those of the official code, in the same order of tests: seed filter, the θ/k schedule with its floor,
layers from the mid block to the first one, then single neurons in the order of their lists. Only work that changes no
decision is left out. Where code and paper differ, the code is followed (paper: Hintersdorf et al. 2024, Alg. 2–4).
Shapes: S kept seeds, W neurons of one layer.
"""

from __future__ import annotations

__all__ = ["Localization", "Localizer", "open_localizer", "read_results", "union"]

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save
from torch import Tensor

from nemo_edge.backends.torch import open_runner
from nemo_edge.calibration import Calibration, Statistics, activations, load_statistics
from nemo_edge.checkpoint import Checkpoint, value_layers
from nemo_edge.errors import InputError
from nemo_edge.files import sha256_json
from nemo_edge.memorization import NoiseProbe, seed_scores
from nemo_edge.multiscale import ms_ssim, pairwise_scores
from nemo_edge.neurons import NeuronSet
from nemo_edge.recipe import LocalizationSettings
from nemo_edge.surgery import silenced

Lists = list[list[int]]
"""Candidates of each layer in the order of their tests; a neuron can be in a list twice, as in the official code."""


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
    refined: NeuronSet
    refined_score: float
    """The highest score between δ with and without the neurons, over the kept seeds."""
    floor: bool
    """The schedule ended at its floor with a score above τ, which then became the threshold of the refinement."""
    theta: float
    k: int
    evaluations: int
    """UNet batches that were run."""
    seconds: float


class Localizer:
    """Finds the neurons of prompts of one checkpoint, with one τ and one set of reference statistics."""

    def __init__(self, checkpoint: Checkpoint, statistics: Statistics, threshold: float, settings: LocalizationSettings) -> None:
        self.checkpoint = checkpoint
        self.statistics = statistics
        self.threshold = threshold
        self.settings = settings
        self._probe = NoiseProbe.of(checkpoint.config, settings)
        self._unet = open_runner(checkpoint.unet_component())
        tensors = {f"{kind}{i}": t for kind in ("mean", "std") for i, t in enumerate(getattr(statistics, kind))}
        measured = hashlib.sha256(save(tensors)).hexdigest()
        self.inputs = sha256_json([checkpoint.files, measured, threshold, settings.model_dump()])

    def detect(self, prompt: str) -> tuple[float, tuple[int, ...]]:
        """Return the prompt's highest pairwise score and the seeds above τ (none: not memorized)."""
        search = _Search(self, prompt)
        return search.score, search.seeds

    def localize(self, prompt: str) -> Localization:
        """Find the neurons of one prompt; the sets are empty when it is not memorized."""
        started = time.monotonic()
        search = _Search(self, prompt)
        layers, threshold = self.statistics.layers, self.threshold
        lists: Lists = [[] for _ in layers]
        refined, initial_score, refined_score, theta, k, floor = (
            lists,
            0.0,
            0.0,
            self.settings.initial_theta,
            self.settings.initial_k,
            False,
        )
        if search.seeds:
            lists, theta, k, initial_score = search.select()
            floor = not initial_score <= threshold  # a score that is not a number has not passed either
            refined = search.refine(lists, initial_score if floor else threshold)
            refined_score = search.blocked_score(refined)
        return Localization(
            inputs=self.inputs,
            prompt=prompt,
            memorized=bool(search.seeds),
            threshold=threshold,
            score=search.score,
            seeds=search.seeds,
            initial=NeuronSet.from_lists(layers, lists),
            initial_score=initial_score,
            refined=NeuronSet.from_lists(layers, refined),
            refined_score=refined_score,
            floor=floor,
            theta=theta,
            k=k,
            evaluations=search.evaluations,
            seconds=time.monotonic() - started,
        )

    def localize_all(
        self, prompts: Sequence[str], results: Path | None = None, report: Callable[[Localization], None] = lambda result: None
    ) -> list[Localization]:
        """Localize each prompt; with `results`, append each as a line of JSON and take up what is there already.

        Raises `InputError` when what is there was made from other inputs.
        """
        known = {r.prompt: r for r in read_results(results)} if results is not None and results.is_file() else {}
        if any(r.inputs != self.inputs for r in known.values()):
            raise InputError(f"{results} was made with another checkpoint, statistics, threshold or settings: give another folder")
        found = []
        for prompt in prompts:
            result = known.get(prompt)
            if result is None:
                result = self.localize(prompt)
                known[prompt] = result
                if results is not None:
                    _append(results, result)
            found.append(result)
            report(result)
        return found


def open_localizer(checkpoint: Checkpoint, path: Path, threshold: float | None, settings: LocalizationSettings) -> Localizer:
    """Make a localizer from a statistics file; τ is `threshold`, else the file's own.

    Raises `InputError` when the file is of another model, or holds no τ and none is given.
    """
    statistics = load_statistics(path, value_layers(checkpoint.unet, settings.layers))
    if threshold is None:
        own = None if path.suffix == ".pt" else Calibration.load(path).threshold
        if own is None:
            raise InputError(f"{path} holds no threshold τ: pass --threshold (the paper's is 0.428 for Stable Diffusion 1.4)")
        threshold = own.value
    return Localizer(checkpoint, statistics, threshold, settings)


def read_results(path: Path) -> list[Localization]:
    """Read the JSON lines of localizations; a last line that was cut off is left out. Raises `InputError` otherwise."""
    found = []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            found.append(Localization.model_validate_json(line))
        except ValidationError as error:
            raise InputError(f"{path}, line {number} is not a localization: delete the file and run again") from error
    return found


def union(results: Sequence[Localization]) -> NeuronSet:
    """The refined neurons of all memorized prompts together."""
    combined = NeuronSet.empty(results[0].refined.layers)
    for result in results:
        combined = combined | result.refined
    return combined


class _Search:
    """The search for one prompt's neurons: its activations, its unblocked δ, and the scores known so far."""

    def __init__(self, localizer: Localizer, prompt: str) -> None:
        self.localizer = localizer
        self.settings = localizer.settings
        encoded = localizer.checkpoint.encode([prompt])
        self._conditioning = {name: value.cpu().numpy() for name, value in encoded.items()}
        self._text = encoded["encoder_hidden_states"]
        delta = localizer._probe(localizer._unet, self._conditioning)
        scores_S = seed_scores(pairwise_scores(delta), len(delta))
        self.score = float(scores_S.max())
        self.seeds = tuple(int(s) for s in (scores_S > localizer.threshold).nonzero().flatten())
        self._unblocked = delta[list(self.seeds)]
        self._known: dict[NeuronSet, float] = {}
        self.evaluations = 1

    def select(self) -> tuple[Lists, float, int, float]:
        """Initial selection (Alg. 2): lower θ and raise k until the score is at or below τ, or the floor is reached.

        Return the candidates, the θ and k they were chosen with, and their score; θ's floor itself is never evaluated.
        """
        settings, theta, k = self.settings, self.settings.initial_theta, self.settings.initial_k
        widest = max(layer.width for layer in self.localizer.statistics.layers)
        while True:
            lists = self.candidates(theta, k)
            score = self.blocked_score(lists)
            chosen = lists, theta, k, score
            if score <= self.localizer.threshold:
                return chosen
            if theta > settings.min_theta:
                theta -= settings.theta_step
                k += 1
            if theta <= settings.min_theta or k >= widest:
                return chosen

    def candidates(self, theta: float, k: int) -> Lists:
        """The neurons of each layer with |z| > θ, ascending, then the k of highest activation, descending (§3.2)."""
        statistics = self.localizer.statistics
        measured = activations(self.localizer.checkpoint.unet, self._text, self.settings.layers)
        return [
            _candidates(a_1W[0].float().cpu(), mean_W, std_W, theta, k)
            for a_1W, mean_W, std_W in zip(measured, statistics.mean, statistics.std, strict=True)
        ]

    def refine(self, lists: Lists, threshold: float) -> Lists:
        """Refinement (Alg. 4, layers from last to first): give back what is not needed to stay below `threshold`.

        Whole layers first, then single neurons; of a neuron that is in a list twice, the first copy is tried first.
        """
        kept = [list(chosen) for chosen in lists]
        for layer in reversed(range(len(kept))):
            if kept[layer]:
                trial = [*kept[:layer], [], *kept[layer + 1 :]]
                if self.blocked_score(trial) < threshold:
                    kept = trial
        for layer in reversed(range(len(kept))):
            for neuron in list(kept[layer]):
                fewer = list(kept[layer])
                fewer.remove(neuron)
                trial = [*kept[:layer], fewer, *kept[layer + 1 :]]
                if self.blocked_score(trial) < threshold:
                    kept = trial
        return kept

    def blocked_score(self, lists: Lists) -> float:
        """The highest MS-SSIM, over the kept seeds, of δ without and δ with these neurons silenced."""
        neurons = NeuronSet.from_lists(self.localizer.statistics.layers, lists)
        if neurons not in self._known:
            with silenced(self.localizer.checkpoint.unet, neurons):
                blocked: Tensor = self.localizer._probe(self.localizer._unet, self._conditioning, self.seeds)
            self._known[neurons] = float(ms_ssim(self._unblocked, blocked).max())
            self.evaluations += 1
        return self._known[neurons]


def _candidates(a_W: Tensor, mean_W: Tensor, std_W: Tensor, theta: float, k: int) -> list[int]:
    outliers: list[int] = ((a_W - mean_W).abs() / std_W > theta).nonzero().flatten().tolist()
    top: list[int] = torch.topk(a_W.abs(), min(k, len(a_W))).indices.tolist()
    return outliers + top


def _append(path: Path, result: Localization) -> None:
    """Append one line; a line that an interruption cut off is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        file.seek(0)
        whole = file.read()
        if whole and not whole.endswith(b"\n"):
            file.truncate(whole.rfind(b"\n") + 1)
        file.write((json.dumps(result.model_dump(mode="json")) + "\n").encode())
