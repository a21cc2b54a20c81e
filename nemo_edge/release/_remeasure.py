"""A finished bundle measured again, by the code that a build measures with: after its neurons were changed.

The prompts come from the files that the recipe names, the weights of eager from the checkpoint; both must be those of the build.
"""

from __future__ import annotations

__all__ = ["Sources", "measure_again", "open_sources", "original_rows"]

import shutil
from dataclasses import dataclass
from pathlib import Path

from nemo_edge.backends.torch import DTYPES
from nemo_edge.bundle.manifest import Manifest, amend, open_verified, staging
from nemo_edge.graph.valueweights import Rows
from nemo_edge.localization.localizer import read_results
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.checkpoint import open_parts
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import value_rows
from nemo_edge.recipe.recipe import Recipe, anchored, kept_recipe, with_places
from nemo_edge.release._inputs import Inputs, read_inputs
from nemo_edge.release._judgement import judged, write_evidence
from nemo_edge.release._stages import LazyCheckpoint, Work, measure
from nemo_edge.report.evidence import Evidence
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import checkpoint_folder, checkpoint_hashes
from nemo_edge.system.progress import Progress

_REMEDY = "pass --recipe, the recipe that the bundle was built by"


@dataclass(frozen=True)
class Sources:
    """What a bundle was made from, found again."""

    recipe: Recipe
    """The bundle's, with the checkpoint that is here."""
    inputs: Inputs


def open_sources(bundle: Path, manifest: Manifest, checkpoint: str | None = None, places: Recipe | None = None) -> Sources:
    """Find what a bundle was made from: where it says, from its own place, or where the recipe it was built by says, `places`.

    Raises `InputError` where a file is missing or has changed since.
    """
    if manifest.random_weights is not None:
        raise InputError("a bundle of random weights holds no memories, so that there is nothing to measure: leave --measure out")
    if manifest.hardened is not None:
        raise InputError(f"the weights of {bundle} were hardened: it is measured by a build, whose stages are kept")
    recipe = _found(bundle, manifest, checkpoint, places)
    _check_there(recipe)
    inputs = read_inputs(recipe)
    _check_weights(manifest, recipe.checkpoint.path, inputs.checkpoint)
    changed = sorted(name for name, digest in manifest.prompts.items() if digest not in inputs.prompts.values())
    if changed:
        raise InputError(f"{changed[0]}, which the bundle was made from, has changed since: build the bundle again")
    return Sources(recipe, inputs)


def original_rows(bundle: Path, manifest: Manifest, neurons: NeuronSet, checkpoint: str, places: Recipe | None = None) -> Rows:
    """Return the rows of a set's neurons from the checkpoint and its LoRAs, in the type of the bundle's graphs.

    The LoRAs are where the bundle says, from its own place, or where `places` says. Raises `InputError` for a checkpoint that the bundle
    is not made from, and for a LoRA that is not there.
    """
    recipe = _found(bundle, manifest, checkpoint, places)
    _check_loras(recipe)
    _check_weights(manifest, checkpoint, checkpoint_hashes(checkpoint, recipe.checkpoint.fused, recipe.checkpoint.clip_skip))
    opened = open_parts(recipe.checkpoint, ("unet",))
    return value_rows(opened.unet, neurons, DTYPES[recipe.export.dtype])


def measure_again(bundle: Path, sources: Sources, progress: Progress | None = None) -> Manifest:
    """Run the build's stage that measures on a bundle, with the neurons that it silences now; the bundle then holds what was found.

    Every file is checked before an engine is opened. Raises `BundleError` for a bundle that was changed.
    """
    manifest, inputs, recipe = open_verified(bundle), sources.inputs, sources.recipe
    found = {result.prompt for result in read_results(bundle / "localization.jsonl")}
    if any(prompt.text not in found for prompt in inputs.memorized):
        raise BundleError(f"{bundle}: localization.jsonl is of other prompts than the recipe's: build the bundle again")
    with staging(bundle) as folder:
        measure(Work(recipe, inputs, LazyCheckpoint(recipe.checkpoint), bundle, progress or Progress()), folder)
        manifest = manifest.model_copy(update={"machine": inputs.machine})
        manifest, evidence = judged(manifest, recipe, Evidence.gather(bundle, manifest, Measurement.read(folder)))

        def change(staged: Path) -> None:
            shutil.rmtree(staged / "report", ignore_errors=True)
            (staged / "measurement.json").unlink(missing_ok=True)
            shutil.copyfile(folder / "measurement.json", staged / "measurement.json")
            write_evidence(staged, evidence, folder / "pictures")

        return amend(bundle, manifest, change)


def _check_there(recipe: Recipe) -> None:
    """Raise `InputError` for a source that does not lie where it is looked for."""
    try:
        checkpoint_folder(recipe.checkpoint.path)
    except InputError as error:
        raise InputError(f"{error}; pass --checkpoint, or {_REMEDY.removeprefix('pass ')}") from error
    _check_loras(recipe)
    for path in (recipe.prompts.memorized, recipe.prompts.general, recipe.calibration.statistics, recipe.fidelity.sscd):
        if path is not None and not path.is_file():
            raise InputError(f"{path}, which the bundle was made from, does not exist: {_REMEDY}")


def _check_loras(recipe: Recipe) -> None:
    missing = next((lora.path for lora in recipe.checkpoint.loras if not lora.path.is_file()), None)
    if missing is not None:
        raise InputError(f"LoRA {missing}, which the bundle was made from, does not exist: {_REMEDY}")


def _found(bundle: Path, manifest: Manifest, checkpoint: str | None, places: Recipe | None) -> Recipe:
    """The bundle's recipe with its files where they are now."""
    recipe = anchored(kept_recipe(manifest.recipe, bundle), bundle)
    recipe = with_places(recipe, places) if places else recipe
    if checkpoint is None:
        return recipe
    return recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"path": checkpoint})})


def _check_weights(manifest: Manifest, path: str, found: dict[str, str]) -> None:
    if found != manifest.checkpoint:
        raise InputError(f"{path} is not the checkpoint that this bundle was made from: its files have other hashes; pass --checkpoint")
