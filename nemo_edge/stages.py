"""The stages of a build that find the neurons: calibrate, localize.

Each takes values and a folder, and leaves files; `build` decides which of them must run.
"""

from __future__ import annotations

__all__ = ["calibrate_stage", "find_neurons", "localize_stage"]

from collections.abc import Sequence
from pathlib import Path

from nemo_edge.calibration import Calibration, calibrate, load_statistics
from nemo_edge.checkpoint import Checkpoint, value_layers
from nemo_edge.files import sha256_file
from nemo_edge.groups import GROUPS, Group, Groups, all_neurons, clusters_of
from nemo_edge.localization import Localization, Localizer
from nemo_edge.memorization import Threshold
from nemo_edge.neurons import OfficialRow, write_official_csv
from nemo_edge.progress import Progress
from nemo_edge.prompts import Prompt
from nemo_edge.recipe import Recipe


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
    """What `find_neurons` leaves, and the neurons of each prompt in the official code's format."""
    assert calibration.threshold is not None
    localizer = Localizer(checkpoint, calibration.statistics, calibration.threshold.value, recipe.localization)
    found, _ = find_neurons(localizer, memorized, folder, progress)
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


def find_neurons(
    localizer: Localizer, memorized: Sequence[Prompt], folder: Path, progress: Progress
) -> tuple[list[Localization], list[Group]]:
    """Neurons of each prompt in `localization.jsonl`, of each group in `groups.jsonl` where the settings want groups or variants (both
    are taken up where they stopped), and all of them in `neurons.json`."""
    texts = [prompt.text for prompt in memorized]
    for warning in localizer.warnings(texts):
        progress.note(warning)
    with progress.task("localize", len(texts)) as advance:
        found = localizer.localize_all(texts, folder / "localization.jsonl", lambda _: advance(1))
    groups = _groups(localizer, memorized, found, folder / GROUPS, progress)
    all_neurons(groups, found).save(folder / "neurons.json")
    return found, groups


def _groups(
    localizer: Localizer, memorized: Sequence[Prompt], found: Sequence[Localization], path: Path, progress: Progress
) -> list[Group]:
    settings = localizer.settings
    if settings.group_by == "prompt" and not settings.paraphrases:
        return []
    clusters = clusters_of(memorized, settings.group_by)
    wanted = {r.prompt for r in found if r.memorized}
    with progress.task("group", sum(not wanted.isdisjoint(texts) for texts in clusters.values())) as advance:
        return Groups(localizer, settings.paraphrases).make_all(clusters, found, path, lambda _: advance(1))
