"""Compares any two runners of the same checkpoint, and finds where the second goes wrong when it does.

A side is a checkpoint (eager PyTorch) or a bundle (its engines), with the variant after a colon: `engines/out/sd14:masked`.
"""

from __future__ import annotations

__all__ = ["Comparison", "Question", "compare"]

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.manifest import MANIFEST, Manifest, check_measurable, open_verified
from nemo_edge.measure.divergence import Divergence, EagerProbe, GraphProbe, Probe, first_divergence, first_not_finite
from nemo_edge.measure.fidelity import Agreement, Trajectory, compare_trajectories, merged, trace_trajectory
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.limits import check_seed
from nemo_edge.recipe.recipe import Recipe, anchored, kept_recipe
from nemo_edge.recipe.settings import ENGINE_TOLERANCES, SamplingSettings
from nemo_edge.sampling.loop import Pipeline, guided, latent_shape
from nemo_edge.sampling.pipelines import UNMITIGATED, eager_pipeline, has_unmitigated, open_pipeline, original_weights
from nemo_edge.system.errors import InputError
from nemo_edge.system.memory import pictures_at_once
from nemo_edge.system.progress import Progress

MITIGATED = "mitigated"
_NAMES = ("baked", "masked", MITIGATED, UNMITIGATED)


@dataclass(frozen=True)
class Question:
    """What to compare on: prompts (the bundle's own where none are given), the seed of the first, and settings to override."""

    prompts: Sequence[str] = ()
    seed: int = 0
    steps: int | None = None
    tolerance: float | None = None
    """Largest relative error; the bundle's gate on engine errors where it is not given."""
    allow_pickle: bool = False


class Comparison(BaseModel):
    """Two runners, how far apart they are, and where the second goes wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[1] = 1
    reference: str
    candidate: str
    prompts: tuple[str, ...]
    steps: int
    tolerance: float
    agreement: Agreement
    drift_start: int | None
    """The first step whose latents are off by more than the tolerance."""
    divergence: Divergence | None = None
    """The first bad tensor of the engine (of the candidate, when both sides are engines), where the comparison failed."""

    @property
    def passed(self) -> bool:
        """Whether no error is above the tolerance; NaN is."""
        return bool(self.agreement.largest_error <= self.tolerance)


def compare(reference: str, candidate: str, question: Question, progress: Progress | None = None) -> Comparison:
    """Compare two sides, each "PATH" or "PATH:VARIANT".

    Without a variant a bundle stands for its first one, and a checkpoint has the bundle's neurons silenced, unless the
    bundle's side is unmitigated. Raises `InputError` for sides that are not of the same checkpoint, and for a missing engine.
    """
    progress = progress or Progress()
    sides = _sides(reference, candidate, question.allow_pickle)
    bundle = next(side for side in sides if side.manifest)
    recipe = bundle.recipe
    sampling = recipe.sampling.model_copy(update={"steps": question.steps or recipe.sampling.steps})
    check_seed(question.seed, max(1, len(question.prompts)))
    gate = ENGINE_TOLERANCES[recipe.computed_in] if recipe.engine_tolerance is False else recipe.engine_tolerance
    tolerance = gate if question.tolerance is None else question.tolerance
    prompts = tuple(question.prompts) or _own_prompts(bundle.path)
    found = _compared(sides, prompts, question.seed, sampling, tolerance, progress)
    agreement = merged([part.agreement for part in found])
    return Comparison(
        reference=str(sides[0]),
        candidate=str(sides[1]),
        prompts=prompts,
        steps=sampling.steps,
        tolerance=tolerance,
        agreement=agreement,
        drift_start=agreement.drift_start(tolerance),
        divergence=next((part.divergence for part in found if part.divergence), None),
    )


@dataclass(frozen=True)
class _Part:
    """What one group of prompts showed."""

    agreement: Agreement
    divergence: Divergence | None


def _compared(
    sides: Sequence[_Side], prompts: Sequence[str], seed: int, sampling: SamplingSettings, tolerance: float, progress: Progress
) -> list[_Part]:
    """Compare group by group, so many prompts at once as their size has it; the first group that disagrees is looked into."""
    found: list[_Part] = []
    with ExitStack() as stack, progress.task("compare", len(prompts)) as advance:
        first, second = (side.opened(stack) for side in sides)
        _, height, width = latent_shape(first.pipeline.config, sampling)
        size = pictures_at_once(height * width * first.pipeline.config.factor**2)
        for start in range(0, len(prompts), size):
            group = prompts[start : start + size]
            seeds = range(seed + start, seed + start + len(group))
            expected = first.traced(group, seeds, sampling)
            with second.silence():
                agreement = compare_trajectories(expected, second.pipeline, group, seeds, sampling, second.mask)
            if not np.isfinite(agreement.largest_error):
                second.traced(group, seeds, sampling)  # which says so, where it is eager that gives no numbers
            divergence = None
            if not agreement.largest_error <= tolerance and all(part.divergence is None for part in found):
                divergence = _located(first, second, expected, agreement, group, sampling, tolerance, progress)
            found.append(_Part(agreement, divergence))
            advance(len(group))
    return found


@dataclass(frozen=True)
class _Side:
    """One side, named but not yet opened."""

    path: Path
    variant: str
    manifest: Manifest | None
    checkpoint: Checkpoint | None
    neurons: NeuronSet | None
    """What eager silences; None for a bundle, which has its own."""

    def __str__(self) -> str:
        return f"{self.path}:{self.variant}"

    @property
    def recipe(self) -> Recipe:
        """What a bundle was built by."""
        assert self.manifest is not None
        return kept_recipe(self.manifest.recipe, self.path)

    def opened(self, stack: ExitStack) -> _Opened:
        if self.checkpoint is not None:
            return _Opened(self, eager_pipeline(self.checkpoint), None)
        assert self.manifest is not None
        config = Configuration.load(self.path)
        pure, engine = self.variant == UNMITIGATED, self.recipe.engine
        variant = "masked" if pure and not has_unmitigated(self.manifest.variants, engine) else self.variant
        pipeline = open_pipeline(config, self.path, engine, variant, stack)
        found = NeuronSet.load(self.path / "neurons.json")
        mask = (NeuronSet.empty(found.layers) if pure else found).mask() if pipeline.masked else None
        return _Opened(self, pipeline, mask)


@dataclass(frozen=True)
class _Opened:
    side: _Side
    pipeline: Pipeline
    mask: np.ndarray | None

    def silence(self) -> Any:
        """The context in which eager's neurons are silenced; nothing for an engine."""
        checkpoint, neurons = self.side.checkpoint, self.side.neurons
        return silenced(checkpoint.unet, neurons) if checkpoint is not None and neurons is not None else nullcontext()

    def traced(self, prompts: Sequence[str], seeds: Sequence[int], sampling: SamplingSettings) -> Trajectory:
        """The way from noise to pictures. Raises `InputError` where eager's own latents are not finite."""
        with self.silence():
            found = trace_trajectory(self.pipeline, prompts, seeds, sampling, self.mask)
        if self.side.manifest is None:
            found.check_finite(str(self.side.path))
        return found

    def probe(self, component: str, feed: dict[str, np.ndarray]) -> Probe:
        """Look into a component on a feed of the pipeline; the feed's mask is left out, or put in, as the side needs."""
        own = {name: value for name, value in feed.items() if name != VALUE_MASK}
        if self.side.checkpoint is not None:
            return EagerProbe(next(c for c in self.side.checkpoint.components() if c.name == component), own)
        return self.graph(component, feed)

    def graph(self, component: str, feed: dict[str, np.ndarray]) -> GraphProbe:
        engine, own = self.side.recipe.engine, {name: value for name, value in feed.items() if name != VALUE_MASK}
        masked = component == "unet" and self.pipeline.masked
        if masked:
            assert self.mask is not None
            own[VALUE_MASK] = np.repeat(self.mask[None], len(own["sample"]), axis=0)
        place = UNET_FOLDERS["masked" if masked else "baked"] if component == "unet" else component
        pure = component == "unet" and not masked and self.side.variant == UNMITIGATED
        weights = original_weights(self.side.path) if pure else None
        return GraphProbe(self.side.path / place / "model.onnx", own, engine.provider, engine.threads, weights)


def _sides(reference: str, candidate: str, allow_pickle: bool) -> tuple[_Side, _Side]:
    """Both sides with their variants settled, known to be of the same checkpoint."""
    named = [_split(text) for text in (reference, candidate)]
    manifests = [open_verified(path) if (path / MANIFEST).is_file() else None for path, _ in named]
    bundles = [(path, variant, m) for (path, variant), m in zip(named, manifests, strict=True) if m is not None]
    for path, _, bundled in bundles:
        check_measurable(path, bundled)
    found = []
    for (path, variant), manifest in zip(named, manifests, strict=True):
        if manifest is not None:
            found.append(_Side(path, _variant(path, variant, manifest), manifest, None, None))
            continue
        if not bundles:
            raise InputError(f"neither {reference} nor {candidate} is a bundle: one side must be one (`nemo-edge build` makes it)")
        bundle, theirs, bundled = bundles[0]
        own = anchored(kept_recipe(bundled.recipe, bundle), bundle).checkpoint
        checkpoint = open_checkpoint(str(path), allow_pickle=allow_pickle, loras=own.loras, clip_skip=own.clip_skip)
        pure = (variant or (UNMITIGATED if theirs == UNMITIGATED else MITIGATED)) == UNMITIGATED
        neurons = NeuronSet.load(bundle / "neurons.json")
        found.append(
            _Side(path, UNMITIGATED if pure else MITIGATED, None, checkpoint, NeuronSet.empty(neurons.layers) if pure else neurons)
        )
    files = [_weights(side) for side in found]
    if files[0] != files[1]:
        raise InputError(f"{named[0][0]} and {named[1][0]} are not of the same checkpoint: their weights have other hashes")
    return found[0], found[1]


def _weights(side: _Side) -> Mapping[str, str]:
    """Hashes of the checkpoint that a side's weights are; of a hardened bundle that of the hardened one."""
    if side.manifest is not None:
        return side.manifest.hardened or side.manifest.checkpoint
    return side.checkpoint.files if side.checkpoint else {}


def _split(text: str) -> tuple[Path, str | None]:
    head, _, tail = text.rpartition(":")
    if not head or Path(text).exists():
        return Path(text), None
    if tail not in _NAMES and Path(head).exists():
        raise InputError(f"{text} names no variant {tail!r}: take one of {', '.join(_NAMES)}")
    return (Path(head), tail) if tail in _NAMES else (Path(text), None)


def _variant(path: Path, variant: str | None, manifest: Manifest) -> str:
    if variant in (None, MITIGATED):
        return manifest.variants[0]
    known = (*manifest.variants, *([UNMITIGATED] if "masked" in manifest.variants else []))
    if variant not in known:
        raise InputError(f"the bundle {path} has no {variant} engine: it has {', '.join(known)}")
    return str(variant)


def _own_prompts(bundle: Path) -> tuple[str, ...]:
    """Two examined and two general prompts of the bundle."""
    measured = Measurement.read(bundle)
    return (*(m.prompt for m in measured.variants[0].mitigations[:2]), *measured.general_prompts[:2])


def _located(
    first: _Opened,
    second: _Opened,
    expected: Trajectory,
    agreement: Agreement,
    prompts: Sequence[str],
    sampling: SamplingSettings,
    tolerance: float,
    progress: Progress,
) -> Divergence | None:
    """Look for the first bad tensor, in ONNX Runtime whatever runs the engines: a plan does not show what is inside of it."""
    recipe = next(side.side.recipe for side in (second, first) if side.side.manifest)
    if recipe.export.dtype == "bf16" and recipe.engine.provider == "cpu":
        progress.note("the sides differ; bf16 graphs are looked into with a GPU's provider only (engine.provider of the recipe)")
        return None
    progress.note("the sides differ: looking for the first tensor that does, in ONNX Runtime")
    return _locate(first, second, expected, agreement, prompts, sampling, tolerance)


def _locate(
    first: _Opened,
    second: _Opened,
    expected: Trajectory,
    agreement: Agreement,
    prompts: Sequence[str],
    sampling: SamplingSettings,
    tolerance: float,
) -> Divergence | None:
    """The first bad tensor: in the text encoders, in the UNet at its worst step, or in the decoder, whichever comes first.

    A graph is looked into, and eager is what it is held against, whichever side it is.
    """
    if second.side.manifest is None:
        first, second = second, first
    worst = max(range(len(agreement.steps)), key=lambda i: np.nan_to_num(agreement.steps[i].forced, nan=np.inf))
    config = first.pipeline.config
    rows = [*([sampling.negative_prompt] * len(prompts) if guided(config, sampling) else []), *prompts]
    texts = zip(config.text_encoder_names, config.token_ids(rows), strict=True)
    feeds: list[tuple[str, dict[str, np.ndarray]]] = [(name, {"input_ids": ids}) for name, ids in texts]
    feeds.append(("unet", expected.steps[worst].feed))
    feeds.append(("vae_decoder", first.pipeline.decoder_feed(expected.steps[-1].latents_BCHW)))
    for component, feed in feeds:
        candidate = second.graph(component, feed)
        with first.silence():
            found = first_not_finite(component, candidate) or first_divergence(
                component, first.probe(component, feed), candidate, tolerance
            )
        if found is not None:
            return found
    return None
