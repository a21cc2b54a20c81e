"""The stage that measures a bundle's engines: agreement with eager, each memory before and after, everybody else's pictures.

Pictures go to disk as they are made, prompt by prompt; an examination that was interrupted takes up those that are there.
Shapes: P prompts, G general prompts, S seeds, K training pictures, N value neurons.
"""

from __future__ import annotations

__all__ = ["Subject", "examine"]

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from nemo_edge.localization.calibration import Calibration
from nemo_edge.localization.localizer import Localization
from nemo_edge.measure import mitigation
from nemo_edge.measure.fidelity import Agreement, Trajectory, compare_trajectories, trace_trajectory
from nemo_edge.measure.localcopies import unrelated_distances
from nemo_edge.measure.mitigation import CurvePoint, Drawn, Measurement, PromptMitigation, Shown, VariantMeasurement
from nemo_edge.measure.readings import load_readings
from nemo_edge.measure.replication import Training, copy_threshold, nearest_readings
from nemo_edge.measure.similarity import relative_error
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.sampling.loop import Pipeline, latent_shape
from nemo_edge.sampling.pipelines import UNMITIGATED, eager_pipeline, has_unmitigated, open_pipeline
from nemo_edge.system.files import write_atomically
from nemo_edge.system.memory import pictures_at_once
from nemo_edge.system.progress import Progress

_CURVE_PROMPTS = 8


@dataclass(frozen=True)
class Subject:
    """What is examined: a checkpoint, the bundle made from it, and the prompts with what was found for them."""

    checkpoint: Checkpoint
    bundle: Path
    recipe: Recipe
    memorized: Sequence[Prompt]
    general: Sequence[Prompt]
    localizations: Sequence[Localization]
    calibration: Calibration
    neurons: NeuronSet
    """The neurons that the bundle silences."""
    hardened: Checkpoint | None = None
    """The weights that its engines have, where they were hardened; else the checkpoint's with these neurons silenced."""

    @cached_property
    def empty(self) -> NeuronSet:
        """No neurons."""
        return NeuronSet.empty(self.neurons.layers)


def examine(subject: Subject, folder: Path, progress: Progress) -> Measurement:
    """Examine the engines and write `measurement.json` and `pictures/` into `folder`."""
    recipe = subject.recipe
    with ExitStack() as stack:
        config, engine = subject.checkpoint.config, recipe.engine
        stacks = {v: stack.enter_context(ExitStack()) for v in recipe.export.variants}
        engines: dict[str, Pipeline] = {v: open_pipeline(config, subject.bundle, engine, v, stacks[v]) for v in stacks}
        examination = _Examination(subject, engines, folder / "pictures", progress)
        measurement = examination.run()
        if has_unmitigated(recipe.export.variants, engine):
            stacks["baked"].close()  # it makes room for the unmitigated engine
            plain = open_pipeline(config, subject.bundle, engine, UNMITIGATED, stack)
            measurement = measurement.model_copy(update={"mask_of_ones": examination.mask_of_ones(plain)})
    write_atomically(folder / "measurement.json", measurement.model_dump_json(indent=1) + "\n")
    return measurement


@dataclass(frozen=True)
class _Examination:
    subject: Subject
    engines: dict[str, Pipeline]
    folder: Path
    progress: Progress

    def run(self) -> Measurement:
        s, variants = self.subject, self.subject.recipe.export.variants
        assert s.calibration.threshold is not None
        for which in ("before", *variants, "random"):
            self._draw_memorized(which)
        general = {which: self._draw_general(which) for which in ("before", *variants)}
        threshold = self._copy_threshold(general["before"])
        unrelated = self._local(general["before"])
        local = copy_threshold(unrelated) if unrelated is not None else None
        views = {which: self._views(which, threshold, local) for which in ("before", *variants, "random")}
        self._save_training(views["before"])
        mitigations = self._mitigations(views)
        return Measurement(
            threshold=s.calibration.threshold.value,
            copy_threshold=threshold,
            local_threshold=local,
            local_pairs=len(unrelated) if unrelated is not None else 0,
            general_scores=s.calibration.highest,
            layers=tuple(layer.name for layer in s.neurons.layers),
            neurons=len(s.neurons),
            random_neurons=len(s.neurons.random_like(seed=0)),
            found=tuple(mitigation.z_scores(s.checkpoint, s.calibration.statistics, r, s.recipe.localization) for r in s.localizations),
            general_prompts=tuple(p.text for p in s.general),
            variants=tuple(
                VariantMeasurement(
                    variant=v,
                    trajectory=self._agreement(v, self._mitigated, self._judged, s.neurons),
                    mitigations=mitigations[v],
                    general=mitigation.general_drift(general["before"], general[v]),
                )
                for v in variants
            ),
            untouched=self._agreement("masked", self._untouched, self._plain, s.empty) if "masked" in variants else None,
            curve=tuple(self._curve(general["before"])),
        )

    @cached_property
    def eager(self) -> Pipeline:
        return eager_pipeline(self.subject.checkpoint)

    @contextmanager
    def _mitigated_eager(self) -> Iterator[Pipeline]:
        """Eager with what the engines have."""
        s = self.subject
        if s.hardened is not None:
            yield eager_pipeline(s.hardened)
            return
        with silenced(s.checkpoint.unet, s.neurons):
            yield self.eager

    @cached_property
    def _judged(self) -> tuple[str, ...]:
        """The prompts whose whole trajectories are compared: two examined and two general ones, fewer where pictures are large."""
        turns = zip_longest(self.subject.memorized[:2], self.subject.general[:2])
        return tuple(p.text for pair in turns for p in pair if p)[: self._at_once]

    @cached_property
    def _mitigated(self) -> Trajectory:
        with self._mitigated_eager() as eager:
            return self._trace(eager, self._judged)

    @cached_property
    def _untouched(self) -> Trajectory:
        return self._trace(self.eager, self._plain)

    @cached_property
    def _plain(self) -> tuple[str, ...]:
        """The prompts without a neuron silenced: a quantized engine knows no activations that only memories have, so general ones of it."""
        return (
            self._judged if self.subject.recipe.quantization is None else tuple(p.text for p in self.subject.general[: len(self._judged)])
        )

    def _trace(self, eager: Pipeline, prompts: Sequence[str]) -> Trajectory:
        found = trace_trajectory(eager, prompts, range(len(prompts)), self.subject.recipe.sampling)
        found.check_finite(self.subject.checkpoint.source)
        return found

    def _agreement(self, variant: str, reference: Trajectory, prompts: Sequence[str], chosen: NeuronSet) -> Agreement:
        engine = self.engines[variant]
        mask = chosen.mask() if engine.masked else None
        return compare_trajectories(reference, engine, prompts, range(len(prompts)), self.subject.recipe.sampling, mask)

    def mask_of_ones(self, plain: Pipeline) -> float:
        """The largest error of the masked UNet with a mask of ones against the unmitigated engine, along eager's trajectory."""
        ones, errors = self.subject.empty.mask(), []
        for step in self._untouched.steps:
            expected = plain.unet(step.feed)["out_sample"]
            got = self.engines["masked"].unet({**step.feed, VALUE_MASK: np.repeat(ones[None], len(expected), axis=0)})["out_sample"]
            errors.append(relative_error(expected, got))
        return float(np.max(errors))

    def _draw_memorized(self, which: str) -> None:
        """Pictures of the examined prompts into `<prompt>/<which>-<seed>.png`; a group that is there whole is not made again."""
        s, seeds = self.subject, range(self.subject.recipe.fidelity.seeds)
        size = max(1, self._at_once // len(seeds))
        with self.progress.task(f"pictures: {which}", len(s.memorized) * len(seeds)) as advance:
            for start in range(0, len(s.memorized), size):
                group = range(start, min(start + size, len(s.memorized)))
                paths = [self._path(index, which, seed) for index in group for seed in seeds]
                if not all(path.is_file() for path in paths):
                    drawn = self._drawn([s.memorized[i].text for i in group], seeds, self._chosen(which), which)
                    for path, picture in zip(paths, drawn.pictures.reshape(-1, *drawn.pictures.shape[2:]), strict=True):
                        _save(picture, path)
                advance(len(paths))

    def _draw_general(self, which: str) -> Drawn:
        """Pictures of the general prompts, into `general/<prompt>-<which>-<seed>.png` too."""
        s, seeds = self.subject, range(self.subject.recipe.fidelity.general_seeds)
        with self.progress.task(f"general: {which}", len(s.general) * len(seeds)) as advance:
            drawn = self._drawn([p.text for p in s.general], seeds, self._chosen(which), which)
            advance(len(s.general) * len(seeds))
        for index, seed in np.ndindex(drawn.pictures.shape[:2]):
            _save(drawn.pictures[index, seed], self.folder / "general" / f"{index:03d}-{which}-{seed:02d}.png")
        return drawn

    def _chosen(self, which: str) -> NeuronSet:
        """The neurons silenced in the pictures of `which`."""
        s = self.subject
        return {"before": s.empty, "random": s.neurons.random_like(seed=0)}.get(which, s.neurons)

    def _drawn(self, prompts: Sequence[str], seeds: Sequence[int], chosen: NeuronSet, which: str = "") -> Drawn:
        """Draw with these neurons silenced: with the engine of a variant, and with the masked one, or else eager, for all else."""
        s = self.subject
        pipeline = self.engines.get(which) or self.engines.get("masked", self.eager)
        mask = chosen.mask() if pipeline.masked else None
        with silenced(s.checkpoint.unet, chosen if pipeline is self.eager else s.empty):
            return mitigation.draw_prompts(pipeline, prompts, seeds, s.recipe.sampling, mask)

    def _path(self, index: int, which: str, seed: int) -> Path:
        return self.folder / f"{index:03d}" / f"{which}-{seed:02d}.png"

    @cached_property
    def _training(self) -> Training:
        """The training pictures that are known, in all their readings and in the order of their prompts."""
        paths = [p.image for p in self.subject.memorized if p.image]
        return Training.of([load_readings(path, self._size) for path in paths], self._size)

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width of the pictures, in pixels."""
        config = self.subject.checkpoint.config
        _, height, width = latent_shape(config, self.subject.recipe.sampling)
        return height * config.factor, width * config.factor

    @cached_property
    def _at_once(self) -> int:
        """How many pictures are drawn together, by their size."""
        height, width = self._size
        return pictures_at_once(height * width)

    @cached_property
    def _own(self) -> tuple[int | None, ...]:
        """The place of each prompt's own picture among the training pictures."""
        places = iter(range(len(self._training)))
        return tuple(next(places) if prompt.image else None for prompt in self.subject.memorized)

    def _save_training(self, before: Sequence[Shown]) -> None:
        """Each training picture in the reading that the unmitigated pictures are nearest to."""
        for index, (own, view) in enumerate(zip(self._own, before, strict=True)):
            if own is not None:
                _save(self._training.picture(own, view.reading), self.folder / f"{index:03d}" / "training.png")

    def _copy_threshold(self, general: Drawn) -> float | None:
        """The threshold of copies, from the distances between general pictures and training pictures, which are unrelated."""
        unrelated = general.pictures.reshape(-1, *general.pictures.shape[2:])
        return copy_threshold(nearest_readings(unrelated, self._training)[0]) if len(self._training) else None

    def _local(self, general: Drawn) -> np.ndarray | None:
        """The windowed distances of unrelated pairs, from which the threshold of local copies comes."""
        unrelated = general.pictures.reshape(-1, *general.pictures.shape[2:])
        return unrelated_distances(unrelated, self._training) if len(self._training) else None

    def _views(self, which: str, threshold: float | None, local: float | None) -> list[Shown]:
        seeds, sscd, judged = range(self.subject.recipe.fidelity.seeds), self.subject.recipe.fidelity.sscd, []
        with self.progress.task(f"copies: {which}", len(self._own)) as advance:
            for index, own in enumerate(self._own):
                pictures = _load([self._path(index, which, seed) for seed in seeds])
                judged.append(mitigation.shown(pictures, own, self._training, threshold, sscd, local))
                advance(1)
        return judged

    def _mitigations(self, views: dict[str, list[Shown]]) -> dict[str, tuple[PromptMitigation, ...]]:
        """Each prompt on each variant, against eager with the same neurons silenced."""
        s, variants = self.subject, self.subject.recipe.export.variants
        found: dict[str, list[PromptMitigation]] = {variant: [] for variant in variants}
        with self.progress.task("compare with eager", len(s.memorized)) as advance:
            for index, (prompt, result) in enumerate(zip(s.memorized, s.localizations, strict=True)):
                scores, errors = self._scores(result), dict(self._distance_errors(index))
                for variant in variants:
                    found[variant].append(
                        PromptMitigation(
                            prompt=result.prompt,
                            kind=prompt.kind,
                            neurons=len(result.refined),
                            seeds=s.recipe.fidelity.seeds,
                            score_before=result.score,
                            score_after=scores[variant],
                            score_after_eager=scores["eager"],
                            before=views["before"][index],
                            after=views[variant][index],
                            random=views["random"][index],
                            distance_error=errors.get(variant),
                        )
                    )
                advance(1)
        return {variant: tuple(rows) for variant, rows in found.items()}

    def _scores(self, result: Localization) -> dict[str, float]:
        """The score left of one prompt, on eager and on each variant."""
        s, export = self.subject, self.subject.recipe.export
        shape = latent_shape(s.checkpoint.config, s.recipe.sampling) if export.height or export.width else None
        settings, mask = s.recipe.localization, s.neurons.mask()
        unmitigated = mitigation.noise_difference(s.checkpoint, self.eager, result, settings, shape=shape)
        with self._mitigated_eager() as eager:
            left = {"eager": mitigation.noise_difference(s.checkpoint, eager, result, settings, shape=shape)}
        for variant in export.variants:
            engine = self.engines[variant]
            left[variant] = mitigation.noise_difference(s.checkpoint, engine, result, settings, mask if engine.masked else None, shape)
        return {name: mitigation.score_left(unmitigated, delta) for name, delta in left.items()}

    def _distance_errors(self, index: int) -> Iterator[tuple[str, float]]:
        """How far each variant's copy distances of one prompt are from those of eager's pictures, at the most."""
        s, own, settings = self.subject, self._own[index], self.subject.recipe.fidelity
        seeds = range(min(settings.agreement_seeds, settings.seeds))
        if own is None or not seeds:
            return
        training = self._training.only(own)
        with self._mitigated_eager() as eager:
            drawn = mitigation.draw_prompts(eager, [s.memorized[index].text], seeds, s.recipe.sampling).pictures[0]
        expected, _ = nearest_readings(drawn, training)
        for variant in s.recipe.export.variants:
            got, _ = nearest_readings(_load([self._path(index, variant, seed) for seed in seeds]), training)
            yield variant, float(np.abs(expected - got).max())

    def _curve(self, before: Drawn) -> Iterator[CurvePoint]:
        """Drift and diversity of general prompts against the number of neurons silenced: those found, and random ones beside them."""
        s, prompts = self.subject, [p.text for p in self.subject.general][:_CURVE_PROMPTS]
        base = Drawn(before.pictures[: len(prompts)], before.latents[: len(prompts)])
        seeds = range(s.recipe.fidelity.general_seeds)
        sets = list(dict.fromkeys(self._curve_sets()))
        with self.progress.task("general: curve", len(sets)) as advance:
            for chosen, neurons in sets:
                drift = mitigation.general_drift(base, self._drawn(prompts, seeds, neurons))
                yield CurvePoint(
                    neurons=len(neurons),
                    chosen=chosen,
                    drift=drift.mean,
                    latents=drift.latents,
                    diversity=drift.diversity_after,
                )
                advance(1)

    def _curve_sets(self) -> Iterator[tuple[Literal["found", "random"], NeuronSet]]:
        found = self.subject.neurons
        yield "found", self.subject.empty
        for factor in self.subject.recipe.fidelity.curve if len(found) else ():
            count = max(1, round(factor * len(found)))
            if factor <= 1:
                yield "found", found.subset(count, seed=0)
            if factor >= 1:
                yield "random", found.others(count, seed=0)


def _save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    Image.fromarray(picture).save(temporary, format="PNG")
    temporary.replace(path)


def _load(paths: Sequence[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in paths])
