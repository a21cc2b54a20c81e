"""The stages of a build that find the neurons: calibrate, localize; and detection, which finds prompts.

Each takes values and a folder, and leaves files; who calls decides which of them must run, and checks what comes from outside.
"""

from __future__ import annotations

__all__ = ["Detected", "Localized", "calibrate_stage", "detect_all", "find_neurons", "localize_stage", "open_detector"]

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemo_edge.localization.calibration import Calibration, calibrate, check_own, load_statistics, read_threshold
from nemo_edge.localization.detection import Detection, Detector
from nemo_edge.localization.detectors import label_of, rocs_of
from nemo_edge.localization.groups import GROUPS, Group, Groups, all_neurons, clusters_of
from nemo_edge.localization.localizer import Localization, Localizer, read_results
from nemo_edge.localization.memorization import Threshold
from nemo_edge.localization.roc import Roc
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet, OfficialRow, write_official_csv
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.settings import CalibrationSettings, LocalizationSettings
from nemo_edge.system.files import sha256_file, write_atomically
from nemo_edge.system.progress import Progress


def calibrate_stage(
    checkpoint: Checkpoint,
    settings: CalibrationSettings,
    method: LocalizationSettings,
    general: Sequence[Prompt],
    folder: Path,
    progress: Progress,
) -> Calibration:
    """Statistics and τ in `folder/calibration.safetensors`: measured, or taken from the settings as far as they give them."""
    prompts = [p.text for p in general][: settings.prompts]
    layers = value_layers(checkpoint.unet, method.layers)
    given = load_statistics(settings.statistics, layers) if settings.statistics else None
    if settings.statistics:
        check_own(settings.statistics, checkpoint)
    with progress.task("calibrate", len(prompts)) as advance:
        measured = calibrate(checkpoint, prompts, method, advance, with_threshold=settings.threshold is None)
    threshold = measured.threshold
    if settings.threshold is not None:
        threshold = Threshold(settings.threshold, 0.0)
    assert threshold is not None
    provenance = measured.provenance.model_copy(update={"threshold_mean": threshold.mean, "threshold_std": threshold.std})
    if settings.statistics is not None:
        provenance = provenance.model_copy(update={"statistics_hash": sha256_file(settings.statistics)})
    calibration = Calibration(given or measured.statistics, threshold, measured.highest, provenance)
    if calibration.above is not None:
        rate = f"{calibration.above} of {len(calibration.highest)} general prompts lie above it ({calibration.above_rate:.1%})"
        progress.note(f"τ = {threshold.value:.3f}; {rate}")
    calibration.save(folder / "calibration.safetensors")
    return calibration


def localize_stage(
    checkpoint: Checkpoint,
    calibration: Calibration,
    method: LocalizationSettings,
    memorized: Sequence[Prompt],
    folder: Path,
    progress: Progress,
) -> list[Localization]:
    """What `find_neurons` leaves, and the neurons of each prompt in the official code's format."""
    assert calibration.threshold is not None
    localizer = Localizer(checkpoint, calibration.statistics, calibration.threshold.value, method)
    found = find_neurons(localizer, memorized, folder, progress).results
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
    return list(found)


class Localized(BaseModel):
    """What was found in a checkpoint for a list of prompts."""

    model_config = ConfigDict(frozen=True)

    results: tuple[Localization, ...]
    """Of each prompt, in order."""
    groups: tuple[Group, ...]
    """Prompts with one set of neurons, where the settings want groups or variants."""
    out: str | None
    """The folder that holds the files, if one was given."""

    @property
    def neurons(self) -> NeuronSet:
        """All neurons: those of the groups, where there are none those of the prompts."""
        return all_neurons(self.groups, self.results)


def find_neurons(localizer: Localizer, memorized: Sequence[Prompt], folder: Path | None, progress: Progress) -> Localized:
    """Find the neurons of each prompt, and of each group where the settings want groups or variants.

    In `folder` leave `localization.jsonl` and `groups.jsonl`, both taken up where they stopped, all neurons in `neurons.json`, and apart
    from what was found how long it took.
    """
    texts = [prompt.text for prompt in memorized]
    for warning in localizer.checkpoint.config.warnings(texts):
        progress.note(warning)
    with progress.task("localize", len(texts)) as advance:
        found = localizer.localize_all(texts, folder / "localization.jsonl" if folder else None, lambda _: advance(1))
    if folder is not None:
        _put_in_order(folder / "localization.jsonl", texts)
    groups = _groups(localizer, memorized, found, folder / GROUPS if folder else None, progress)
    localized = Localized(results=tuple(found), groups=tuple(groups), out=str(folder) if folder else None)
    if folder is not None:
        localized.neurons.save(folder / "neurons.json")
    return localized


def _put_in_order(path: Path, texts: Sequence[str]) -> None:
    """Put the lines of a file in the order of the prompts: they come as searches end, in another order after an interruption."""
    place, found = {text: number for number, text in enumerate(dict.fromkeys(texts))}, read_results(path)
    ordered = sorted(found, key=lambda result: place.get(result.prompt, len(place)))
    content = "".join(json.dumps(result.model_dump(mode="json", exclude={"seconds"})) + "\n" for result in ordered)
    if path.read_bytes() != content.encode():
        write_atomically(path, content)


def _groups(
    localizer: Localizer, memorized: Sequence[Prompt], found: Sequence[Localization], path: Path | None, progress: Progress
) -> list[Group]:
    settings = localizer.settings
    if settings.group_by == "prompt" and not settings.paraphrases:
        return []
    clusters = clusters_of(memorized, settings.group_by)
    wanted = {r.prompt for r in found if r.memorized}
    with progress.task("group", sum(not wanted.isdisjoint(texts) for texts in clusters.values())) as advance:
        return Groups(localizer, settings.paraphrases).make_all(clusters, found, path, lambda _: advance(1))


class Detected(BaseModel):
    """What was found for a list of prompts."""

    model_config = ConfigDict(frozen=True)

    threshold: float
    prompts: tuple[Detection, ...]
    memorized: int
    rocs: tuple[Roc, ...]
    """The ROC of each detector, where the list has labels."""
    rows: int
    """Rows of the UNet that were run; of prompts that were taken up none."""
    seconds: float
    unet_share: float | None
    """The share of that time that the UNet's forwards took."""


def open_detector(checkpoint: Checkpoint, statistics: Path, threshold: float | None, settings: LocalizationSettings) -> Detector:
    """Make a detector from a statistics file; τ is `threshold`, else the file's own.

    Raises `InputError` when the file is of another model, or holds no τ and none is given.
    """
    load_statistics(statistics, value_layers(checkpoint.unet, settings.layers))
    check_own(statistics, checkpoint)
    return Detector(checkpoint, read_threshold(statistics) if threshold is None else threshold, settings)


def detect_all(detector: Detector, prompts: Sequence[Prompt], folder: Path | None, progress: Progress) -> Detected:
    """Examine the prompts, compare the detectors where they are labelled; in `folder` leave `detection.jsonl`, taken up where it
    stopped, and `roc.json`."""
    texts = [prompt.text for prompt in prompts]
    for warning in detector.checkpoint.config.warnings(texts):
        progress.note(warning)
    with progress.task("detect", len(texts)) as advance:
        found = detector.detect_all(texts, folder / "detection.jsonl" if folder else None, advance)
    rocs = rocs_of(prompts, found) if {True, False} <= set(map(label_of, prompts)) else ()  # one kind alone makes no curve
    if folder is not None and rocs:
        write_atomically(folder / "roc.json", json.dumps([roc.model_dump(mode="json") for roc in rocs], indent=1) + "\n")
    return Detected(
        threshold=detector.threshold,
        prompts=tuple(found),
        memorized=sum(each.memorized for each in found),
        rocs=rocs,
        rows=detector.rows,
        seconds=detector.seconds,
        unet_share=detector.unet_seconds / detector.seconds if detector.seconds else None,
    )
