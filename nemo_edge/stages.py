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
]

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_edge import __version__
from nemo_edge.backends import onnxruntime
from nemo_edge.bundle import check_folder, staging
from nemo_edge.calibration import Calibration, Statistics, calibrate, load_statistics
from nemo_edge.checkpoint import Checkpoint, Layers, value_layers
from nemo_edge.component import Component
from nemo_edge.errors import InputError
from nemo_edge.export import Exported, export_component
from nemo_edge.files import sha256_file
from nemo_edge.localization import Localization, Localizer, union
from nemo_edge.memorization import Threshold
from nemo_edge.neurons import NeuronSet, OfficialRow, write_official_csv
from nemo_edge.pipelines import UNET_FOLDERS
from nemo_edge.progress import Progress
from nemo_edge.prompts import Prompt
from nemo_edge.recipe import ExportSettings, Recipe
from nemo_edge.surgery import gate, silenced


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


def compile_stage(bundle: Path, recipe: Recipe, exported: Sequence[Exported]) -> list[str]:
    """An engine of every ONNX file for the recipe's provider; return their paths in the bundle."""
    engine = recipe.engine
    places = [Path(e.model).parent.name for e in exported]
    for place in places:
        onnxruntime.compile_engine(bundle, place, f"{place}/model.onnx", engine.provider, engine.threads)
    return [f"engines/{place}.onnxruntime.{engine.provider}.json" for place in places]
