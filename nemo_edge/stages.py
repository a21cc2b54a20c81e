"""The stages of a build that do the work: calibrate, localize, export, compile, measure.

Each takes values and a folder, and leaves files; `build` decides which of them must run.
"""

from __future__ import annotations

__all__ = [
    "UNET_FOLDERS",
    "calibrate_stage",
    "compile_stage",
    "eager_pipeline",
    "export_folder",
    "export_stage",
    "localize_stage",
    "measure_stage",
    "open_pipeline",
]

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nemo_edge import __version__, fidelity, replication
from nemo_edge.backends import Runner, onnxruntime, torch
from nemo_edge.bundle import check_folder, staging
from nemo_edge.calibration import Calibration, Statistics, calibrate, load_statistics
from nemo_edge.checkpoint import Checkpoint, Layers, value_layers
from nemo_edge.component import Component
from nemo_edge.configuration import Configuration
from nemo_edge.errors import InputError
from nemo_edge.export import Exported, export_component
from nemo_edge.files import sha256_file, write_atomically
from nemo_edge.localization import Localization, Localizer, union
from nemo_edge.memorization import Threshold
from nemo_edge.neurons import NeuronSet, OfficialRow, write_official_csv
from nemo_edge.progress import Advance, Progress
from nemo_edge.prompts import Prompt
from nemo_edge.recipe import ExportSettings, Recipe
from nemo_edge.sampling import Pipeline, latent_shape
from nemo_edge.surgery import gate, silenced

UNET_FOLDERS = {"baked": "unet", "masked": "unet_masked"}
"""Folder of each variant's UNet inside a bundle; a baked bundle has the layout of optimum's."""


def calibrate_stage(checkpoint: Checkpoint, recipe: Recipe, general: Sequence[Prompt], folder: Path, progress: Progress) -> Calibration:
    """Statistics and τ in `folder/calibration.safetensors`: measured, or taken from the recipe as far as it gives them."""
    settings, prompts = recipe.calibration, [p.text for p in general][: recipe.calibration.prompts]
    layers = value_layers(checkpoint.unet, recipe.localization.layers)
    given = load_statistics(settings.statistics, layers) if settings.statistics else None
    with progress.task("calibrate", len(prompts)) as advance:
        measured = calibrate(checkpoint, prompts, recipe.localization, advance, with_threshold=settings.threshold is None)
    threshold = measured.threshold
    if settings.threshold is not None:
        threshold = Threshold(settings.threshold, 0.0)
    assert threshold is not None
    provenance = measured.provenance.model_copy(update={"threshold_mean": threshold.mean, "threshold_std": threshold.std})
    if settings.statistics is not None:
        provenance = provenance.model_copy(update={"statistics_hash": sha256_file(settings.statistics)})
    calibration = Calibration(given or measured.statistics, threshold, measured.highest, provenance)
    calibration.save(folder / "calibration.safetensors")
    return calibration


def localize_stage(
    checkpoint: Checkpoint,
    statistics: Statistics,
    threshold: float,
    recipe: Recipe,
    memorized: Sequence[Prompt],
    folder: Path,
    progress: Progress,
) -> list[Localization]:
    """Neurons of each prompt in `localization.jsonl` (taken up where it stopped), their union in `neurons.json`."""
    localizer = Localizer(checkpoint, statistics, threshold, recipe.localization)
    with progress.task("localize", len(memorized)) as advance:
        found = localizer.localize_all([p.text for p in memorized], folder / "localization.jsonl", lambda _: advance(1))
    union(found).save(folder / "neurons.json")
    rows = [
        OfficialRow(
            caption=r.prompt,
            url=p.url,
            initial=[list(i) for i in r.initial.indices],
            initial_score=r.initial_score,
            refined=[list(i) for i in r.refined.indices],
            refined_score=r.refined_score,
        )
        for r, p in zip(found, memorized, strict=True)
    ]
    write_official_csv(folder / "memorization_statistics.csv", rows)
    return found


def export_stage(
    checkpoint: Checkpoint, settings: ExportSettings, neurons: NeuronSet, folder: Path, provenance: dict[str, str], progress: Progress
) -> list[Exported]:
    """ONNX files of every component in the bundle's layout; the UNet once for each variant."""
    jobs = list(_export_jobs(checkpoint, settings.variants, neurons))
    exported = []
    with progress.task("export", len(jobs)) as advance:
        for place, component, silence in jobs:
            with silenced(checkpoint.unet, neurons if silence else NeuronSet.empty(neurons.layers)):
                facts = {**provenance, "component": component.name, "folder": place, "neurons": neurons.content_hash() if silence else ""}
                exported.append(export_component(component, folder / place, settings, facts, checkpoint.config.factor))
            advance(1)
    checkpoint.config.save(folder, [UNET_FOLDERS[variant] for variant in settings.variants])
    return exported


def export_folder(
    checkpoint: Checkpoint, settings: ExportSettings, neurons: NeuronSet | None, layers: Layers, folder: Path, progress: Progress
) -> list[Exported]:
    """Export a checkpoint into a folder of its own, all or nothing; without `neurons` nothing is baked."""
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"the output folder {folder} is not empty: give another folder, or empty it")
    chosen = NeuronSet.empty(value_layers(checkpoint.unet, layers)) if neurons is None else neurons
    with staging(folder) as staged:
        exported = export_stage(checkpoint, settings, chosen, staged, {"version": __version__}, progress)
        staged.chmod(0o755)
        os.replace(staged, folder)
    return exported


def _export_jobs(checkpoint: Checkpoint, variants: Sequence[str], neurons: NeuronSet) -> Iterator[tuple[str, Component, bool]]:
    for component in checkpoint.components():
        if component.name != "unet":
            yield component.name, component, False
            continue
        if "baked" in variants:
            yield UNET_FOLDERS["baked"], component, True
        if "masked" in variants:
            yield UNET_FOLDERS["masked"], gate(component, checkpoint.unet, neurons.layers), False


def open_pipeline(config: Configuration, bundle: Path, provider: str, variant: str, stack: ExitStack) -> Pipeline:
    """Open the engines of one variant; `stack` closes them."""

    def opened(place: str) -> Runner:
        return stack.enter_context(onnxruntime.open_engine(bundle, place, provider))

    names = ("text_encoder", "text_encoder_2")[: len(config.text_encoders)]
    return Pipeline(config, tuple(opened(name) for name in names), opened(UNET_FOLDERS[variant]), opened("vae_decoder"))


def eager_pipeline(checkpoint: Checkpoint) -> Pipeline:
    """The checkpoint in eager PyTorch, the reference."""
    *texts, unet, vae = (torch.open_runner(component) for component in checkpoint.components())
    return Pipeline(checkpoint.config, tuple(texts), unet, vae)


def compile_stage(bundle: Path, recipe: Recipe, exported: Sequence[Exported]) -> list[str]:
    """An engine of every ONNX file for the recipe's provider; return their paths in the bundle."""
    engine = recipe.engine
    places = [Path(e.model).parent.name for e in exported]
    for place in places:
        onnxruntime.compile_engine(bundle, place, f"{place}/model.onnx", engine.provider, engine.threads)
    return [f"engines/{place}.onnxruntime.{engine.provider}.json" for place in places]


def measure_stage(
    checkpoint: Checkpoint,
    bundle: Path,
    recipe: Recipe,
    memorized: Sequence[Prompt],
    general: Sequence[Prompt],
    localizations: Sequence[Localization],
    threshold: float,
    folder: Path,
    progress: Progress,
) -> fidelity.Measurement:
    """Examine the engines of a bundle: agreement with eager, the mitigation of each prompt, the drift of general prompts.

    Writes `measurement.json` and `pictures/` into `folder`.
    """
    with ExitStack() as stack:
        engines: dict[str, Pipeline] = {
            v: open_pipeline(checkpoint.config, bundle, recipe.engine.provider, v, stack) for v in recipe.export.variants
        }
        return _Examination(checkpoint, engines, recipe, memorized, general, localizations, threshold, folder, progress).run()


@dataclass(frozen=True)
class _Examination:
    """One run of the measure stage. Shapes: P prompts, G general prompts, S seeds, N value neurons."""

    checkpoint: Checkpoint
    engines: dict[str, Pipeline]
    recipe: Recipe
    memorized: Sequence[Prompt]
    general: Sequence[Prompt]
    localizations: Sequence[Localization]
    threshold: float
    folder: Path
    progress: Progress

    def run(self) -> fidelity.Measurement:
        neurons, eager = union(self.localizations), eager_pipeline(self.checkpoint)
        sets = {variant: self._pictures(variant, neurons, eager) for variant in ("before", *self.engines, "random")}
        copy_threshold = self._copy_threshold(sets["before"])
        with self.progress.task("compare with eager", len(self.engines) * len(self.memorized)) as advance:
            variants = [self._variant(v, neurons, eager, sets, copy_threshold, advance) for v in self.engines]
        measurement = fidelity.Measurement(
            threshold=self.threshold,
            copy_threshold=copy_threshold,
            neurons=len(neurons),
            random_neurons=len(neurons.random_like(seed=0)),
            variants=tuple(variants),
            untouched=self._agreement(eager, "masked", None) if "masked" in self.engines else None,
        )
        self._save_pictures(sets)
        write_atomically(self.folder / "measurement.json", measurement.model_dump_json(indent=1) + "\n")
        return measurement

    def _pictures(self, which: str, neurons: NeuronSet, eager: Pipeline) -> tuple[np.ndarray, np.ndarray]:
        """Pictures of the memorized prompts [P, S, H, W, 3] and of the general ones [G, 1, H, W, 3].

        `which` is a variant, "before" (nothing silenced) or "random" (as many random neurons of the same layers), which is
        a control for the memorized prompts alone: its G is 0.
        """
        texts, seeds = [p.text for p in self.memorized], range(self.recipe.fidelity.seeds)
        others = [p.text for p in self.general] if which != "random" else []
        chosen = {"before": NeuronSet.empty(neurons.layers), "random": neurons.random_like(seed=0)}.get(which, neurons)
        pipeline = self.engines.get(which, self.engines.get("masked", eager))
        mask = chosen.mask() if pipeline.masked else None
        total = len(texts) * len(seeds) + len(others)
        silent = chosen if pipeline is eager else NeuronSet.empty(neurons.layers)
        with self.progress.task(f"pictures: {which}", total) as advance, silenced(self.checkpoint.unet, silent):
            made = fidelity.pictures_of(pipeline, texts, seeds, self.recipe.sampling, mask, advance)
            return made, fidelity.pictures_of(pipeline, others, [0], self.recipe.sampling, mask, advance)

    def _training(self, size: tuple[int, int]) -> np.ndarray:
        """The training pictures that are known, [K, H, W, 3]."""
        paths = [p.image for p in self.memorized if p.image]
        return np.stack([replication.load_picture(path, size) for path in paths]) if paths else np.empty((0, *size, 3), np.uint8)

    def _copy_threshold(self, before: tuple[np.ndarray, np.ndarray]) -> float | None:
        """The threshold of copies, from the distances between general pictures and training pictures, which are unrelated."""
        training = self._training(before[0].shape[2:4])
        return replication.copy_threshold(replication.tiled_distances(before[1][:, 0], training)) if len(training) else None

    def _agreement(self, eager: Pipeline, variant: str, neurons: NeuronSet | None) -> fidelity.TrajectoryAgreement:
        """Trajectories of two memorized and two general prompts on the engine and on eager."""
        prompts = [p.text for p in (*self.memorized[:2], *self.general[:2])]
        engine, empty = self.engines[variant], NeuronSet.empty(union(self.localizations).layers)
        chosen = empty if neurons is None else neurons
        mask = chosen.mask() if engine.masked else None
        with silenced(self.checkpoint.unet, chosen):
            return fidelity.compare_trajectories(eager, engine, prompts, range(len(prompts)), self.recipe.sampling, (None, mask))

    def _variant(
        self, variant: str, neurons: NeuronSet, eager: Pipeline, sets: dict[str, Any], copy_threshold: float | None, advance: Advance
    ) -> fidelity.VariantMeasurement:
        engine = self.engines[variant]
        mask = neurons.mask() if engine.masked else None
        training = self._training(sets["before"][0].shape[2:4])
        places, sscd = iter(range(len(training))), self.recipe.fidelity.sscd
        mitigations = []
        for index, (prompt, found) in enumerate(zip(self.memorized, self.localizations, strict=True)):
            left = fidelity.score_left(self.checkpoint, eager, engine, found, self.recipe.localization, mask, self._pinned_shape())
            pictures = {name: sets[key][0][index] for name, key in (("before", "before"), ("after", variant), ("random", "random"))}
            own = next(places) if prompt.image else None
            mitigations.append(fidelity.mitigation_of(found, prompt.kind, left, pictures, own, training, copy_threshold, sscd))
            advance(1)
        return fidelity.VariantMeasurement(
            variant=variant,
            trajectory=self._agreement(eager, variant, neurons),
            mitigations=tuple(mitigations),
            general=fidelity.general_drift(sets["before"][1][:, 0], sets[variant][1][:, 0]),
        )

    def _pinned_shape(self) -> tuple[int, int, int] | None:
        export = self.recipe.export
        return latent_shape(self.checkpoint.config, self.recipe.sampling) if export.height or export.width else None

    def _save_pictures(self, sets: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """`pictures/<prompt>/<which>-<seed>.png`, `pictures/<prompt>/training.png`, `pictures/general/<prompt>-<which>.png`."""
        root = self.folder / "pictures"
        for which, (memorized, general) in sets.items():
            for (prompt, seed), picture in ((i, memorized[i]) for i in np.ndindex(memorized.shape[:2])):
                _save(picture, root / f"{prompt:03d}" / f"{which}-{seed:02d}.png")
            for prompt, picture in enumerate(general[:, 0]):
                _save(picture, root / "general" / f"{prompt:03d}-{which}.png")
        size = sets["before"][0].shape[2:4]
        for index, prompt in enumerate(self.memorized):
            if prompt.image:
                _save(replication.load_picture(prompt.image, size), root / f"{index:03d}" / "training.png")


def _save(picture: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
