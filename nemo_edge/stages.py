"""The stages of a build that make a bundle: calibrate, localize, export, compile.

Each takes values and a folder, and leaves files; `build` decides which of them must run.
"""

from __future__ import annotations

__all__ = [
    "calibrate_stage",
    "compile_stage",
    "export_folder",
    "export_stage",
    "localize_stage",
    "neurons_stage",
    "plan_stage",
]

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from nemo_edge import __version__
from nemo_edge.apart import run_apart
from nemo_edge.backends import onnxruntime, tensorrt
from nemo_edge.backends.torch import DTYPES
from nemo_edge.bundle import check_folder, staging
from nemo_edge.calibration import Calibration, calibrate, load_statistics
from nemo_edge.checkpoint import Checkpoint, Layers, Source, value_layers
from nemo_edge.component import Component
from nemo_edge.configuration import Configuration
from nemo_edge.errors import InputError
from nemo_edge.export import Disagreement, Exported, export_component
from nemo_edge.files import sha256_file
from nemo_edge.localization import Localization, Localizer, union
from nemo_edge.memorization import Threshold
from nemo_edge.neurons import NeuronSet, OfficialRow, read_neurons, write_official_csv
from nemo_edge.pipelines import UNET_FOLDERS
from nemo_edge.plans import PlanFile
from nemo_edge.progress import Progress
from nemo_edge.prompts import Prompt
from nemo_edge.recipe import ExportSettings, Recipe
from nemo_edge.surgery import bake_, gate, silenced, value_rows
from nemo_edge.targets import FLAVOUR_OF, TensorRtRtxSettings, TensorRtSettings
from nemo_edge.valueweights import SILENCED_ROWS, save_rows
from nemo_edge.verification import Reference, answered, random_feeds, read_cases, trajectory_feeds, write_cases

_Found = TypeVar("_Found")
_RANDOM_NEURONS = 16


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
    checkpoint: Checkpoint, calibration: Calibration, recipe: Recipe, memorized: Sequence[Prompt], folder: Path, progress: Progress
) -> list[Localization]:
    """Neurons of each prompt in `localization.jsonl` (taken up where it stopped), their union in `neurons.json`."""
    assert calibration.threshold is not None
    localizer = Localizer(checkpoint, calibration.statistics, calibration.threshold.value, recipe.localization)
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
    source: Source, settings: ExportSettings, neurons: NeuronSet, folder: Path, provenance: dict[str, str], progress: Progress
) -> list[Exported]:
    """ONNX files of every component in the bundle's layout; the UNet once for each variant, and what was baked out of it.

    Eager float32 answers first; each file is then made from weights in its own type, and held against the answers. The parts of
    a large checkpoint are taken one after the other, each in a process of its own.
    """
    config = source.open(parts=()).config
    places = (*config.text_encoder_names, *(UNET_FOLDERS[variant] for variant in settings.variants), "vae_decoder")
    jobs = [_Job(source, place, neurons, settings, folder, provenance) for place in places]
    with TemporaryDirectory(dir=folder, prefix=".answers") as answers, progress.task("export", len(jobs) + 1) as advance:
        work = partial(_run, source.large, progress)
        work("run eager", _answer, jobs, Path(answers))
        advance(1)
        exported = []
        for job in jobs:
            exported.append(work(f"export {job.place}", _export, job, Path(answers)))
            if exported[-1].note:
                progress.note(exported[-1].note)
            advance(1)
    config.save(folder, [UNET_FOLDERS[variant] for variant in settings.variants])
    return exported


def export_folder(
    source: Source, settings: ExportSettings, neurons: NeuronSet | None, layers: Layers, folder: Path, progress: Progress
) -> list[Exported]:
    """Export a checkpoint into a folder of its own, all or nothing; without `neurons` nothing is baked."""
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"the output folder {folder} is not empty: give another folder, or empty it")
    chosen = NeuronSet.empty(value_layers(source.open(parts=()).unet, layers)) if neurons is None else neurons
    with staging(folder) as staged:
        exported = export_stage(source, settings, chosen, staged, {"version": __version__}, progress)
        staged.chmod(0o755)
        os.replace(staged, folder)
    return exported


@dataclass(frozen=True)
class _Job:
    """One ONNX file: which component of which checkpoint, with which neurons, for the folder `place`."""

    source: Source
    place: str
    neurons: NeuronSet
    settings: ExportSettings
    folder: Path
    provenance: dict[str, str]

    @property
    def component(self) -> str:
        return "unet" if self.place in UNET_FOLDERS.values() else self.place

    @property
    def part(self) -> str:
        return "vae" if self.component == "vae_decoder" else self.component

    @property
    def silenced(self) -> NeuronSet:
        """The neurons that are baked out."""
        return self.neurons if self.place == UNET_FOLDERS["baked"] else NeuronSet.empty(self.neurons.layers)

    @property
    def facts(self) -> dict[str, str]:
        silenced = self.neurons.content_hash() if self.place == UNET_FOLDERS["baked"] else ""
        return {**self.provenance, "component": self.component, "folder": self.place, "neurons": silenced}

    @contextmanager
    def graph(self, checkpoint: Checkpoint) -> Iterator[Component]:
        """The component as this file has it, within the context."""
        component = next(c for c in checkpoint.components() if c.name == self.component)
        if self.component != "unet":
            yield component
            return
        with silenced(checkpoint.unet, self.silenced):
            yield gate(component, checkpoint.unet, self.neurons.layers) if self.place == UNET_FOLDERS["masked"] else component

    def eager(self) -> Component:
        """The component in float32, its neurons silenced for good."""
        checkpoint = self.source.open(parts=(self.part,))
        bake_(checkpoint.unet, self.silenced)
        return ExitStack().enter_context(self.graph(checkpoint))


def _run(apart: bool, progress: Progress, what: str, function: Callable[..., _Found], *arguments: Any) -> _Found:
    return run_apart(what, progress, function, *arguments) if apart else function(*arguments, progress)


def _answer(jobs: Sequence[_Job], answers: Path, _: Progress) -> None:
    """Let eager float32 answer what every file will be asked, in `<answers>/<place>.safetensors`."""
    checkpoint, settings = jobs[0].source.open(), jobs[0].settings
    with silenced(checkpoint.unet, NeuronSet.empty(jobs[0].neurons.layers)):
        along = trajectory_feeds(checkpoint, settings) if settings.dtype != "fp32" else {}
    for job in jobs:
        with job.graph(checkpoint) as component:
            feeds = random_feeds(component, settings, checkpoint.config.factor) | along.get(job.component, {})
            write_cases(answers / f"{job.place}.safetensors", answered(component, feeds))


def _export(job: _Job, answers: Path, progress: Progress) -> Exported:
    """Make one file, in float32 where its type does not do."""
    reference = Reference(read_cases(answers / f"{job.place}.safetensors"), job.eager)
    kept = job.component in job.settings.fp32 or (job.component == "vae_decoder" and job.source.open(parts=()).config.upcasts_decoder)
    if kept or job.settings.dtype == "fp32":
        return _exported(job, "fp32", reference)
    try:
        return _exported(job, job.settings.dtype, reference)
    except Disagreement as error:
        if error.finite:
            raise
        return _exported(job, "fp32", reference).model_copy(update={"note": f"{job.place} stays in fp32: {error}"})


def _exported(job: _Job, dtype: str, reference: Reference) -> Exported:
    settings = job.settings.model_copy(update={"dtype": dtype})
    checkpoint = job.source.open(DTYPES[dtype], parts=(job.part,))
    baked = job.place == UNET_FOLDERS["baked"]
    if baked:
        save_rows(job.folder / SILENCED_ROWS, value_rows(checkpoint.unet, job.silenced, DTYPES[dtype]))
    with job.graph(checkpoint) as component:
        return export_component(
            component, job.folder / job.place, settings, job.facts, checkpoint.config.factor, reference, job.neurons.layers if baked else ()
        )


def neurons_stage(source: Source, recipe: Recipe, folder: Path) -> NeuronSet:
    """`neurons.json` for random weights, which hold no memories: those of a file, or a few at random."""
    assert recipe.random_weights is not None
    layers, path = value_layers(source.open(parts=()).unet, recipe.localization.layers), recipe.random_weights.neurons
    chosen = read_neurons(path, layers) if path else NeuronSet.empty(layers).others(_RANDOM_NEURONS, recipe.random_weights.seed)
    chosen.save(folder / "neurons.json")
    return chosen


def compile_stage(bundle: Path, recipe: Recipe, exported: Sequence[Exported]) -> None:
    """How ONNX Runtime runs each ONNX file of a bundle, in `engines/`."""
    engine = recipe.engine
    for record in exported:
        place = Path(record.model).parent.name
        onnxruntime.compile_engine(bundle, place, record.model, engine.provider, engine.threads)


def plan_stage(
    source: Source, exported: Path, records: Sequence[Exported], recipe: Recipe, table: str, folder: Path, progress: Progress
) -> list[PlanFile]:
    """TensorRT engines of the ONNX files of a folder, in `folder/engines`, as the recipe's `table` says.

    Raises `InputError` for a component that is not there, or a profile that its graph does not take.
    """
    settings: TensorRtSettings | TensorRtRtxSettings = getattr(recipe, table)
    flavour, config = FLAVOUR_OF[table], Configuration.load(exported)
    by_place = {Path(record.model).parent.name: record for record in records}
    missing = [place for place in settings.components or () if place not in by_place]
    if missing:
        raise InputError(f"{table}.components: {missing[0]!r} is not exported; there are {', '.join(by_place)}")
    found = []
    for place in settings.components or by_place:
        record = by_place[place]
        work = (exported, place, record.model, flavour, settings, config, record.dtype, folder)
        found.append(_run(source.large, progress, f"compile {place}", tensorrt.compile_engine, *work))
    return found
