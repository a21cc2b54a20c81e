"""What a build finds out before its stages: whether what it needs is there, fits together and fits into the memory.

Knows recipes and their inputs; runs nothing.
"""

from __future__ import annotations

__all__ = ["check_unmade", "preflight"]

from collections.abc import Sequence
from pathlib import Path

from nemo_edge.model.architectures import ARCHITECTURES, source
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.targets import FLAVOUR_OF
from nemo_edge.release._footprint import Part, check_memory
from nemo_edge.release._inputs import Ingredients
from nemo_edge.release.random_weights import is_random
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import checkpoint_folder
from nemo_edge.system.processes import run_apart
from nemo_edge.system.progress import Progress


def preflight(recipe: Recipe, inputs: Ingredients) -> None:
    """Find out now, not after hours of work, what the last stages would stumble over: `InputError` or `MissingDependency` says what."""
    local = checkpoint_folder(recipe.checkpoint.path)
    _check_tools(recipe, local)
    _check_memory(recipe, local)
    if recipe.random_weights is None:
        _check_trained(local)
        _check_evidence(recipe, inputs)


def check_unmade(recipe: Recipe, progress: Progress) -> None:
    """Find out before gigabytes of random weights are written, which are not needed for that, what `preflight` would."""
    assert recipe.random_weights is not None
    name = recipe.random_weights.architecture
    _check_tools(recipe, source(name))
    found = run_apart("count the weights", progress, "nemo_edge.release.random_weights.parts_of", name)
    _check_memory(recipe, source(name), found)


def _check_tools(recipe: Recipe, model: Path) -> None:
    """What runs, compiles and times the engines of a model, of which configurations are read."""
    from nemo_edge.backends.readiness import check_compiles, check_runs

    _check_sizes(recipe, model)
    check_runs(recipe)
    check_compiles(recipe, model)
    if recipe.checkpoint.device != "cpu":
        from nemo_edge.model.checkpoint import check_device

        check_device(recipe.checkpoint.device)
    for table, settings in (("localization", recipe.localization), ("latency", recipe.latency)):
        if settings is not None and settings.compiled:
            from nemo_edge.model.compilation import check_compiler

            check_compiler(f"{table}.compiled")


def _check_sizes(recipe: Recipe, model: Path) -> None:
    """The sizes of the pictures that are drawn and timed, which the graph must take."""
    from nemo_edge.sampling.loop import check_size

    config = Configuration.load(model, tokenizers=False)
    free = [name for name in ("height", "width") if not getattr(recipe.export, name)]
    for height, width in ((recipe.sampling.height, recipe.sampling.width), *(recipe.latency.sizes if recipe.latency else ())):
        check_size(config, recipe.sampling.model_copy(update={"height": height, "width": width}), free)


def _check_memory(recipe: Recipe, model: Path, found: Sequence[Part] | None = None) -> None:
    compiled = any(getattr(recipe, table) is not None for table in FLAVOUR_OF)
    check_memory(str(model), recipe.export.dtype, compiled=compiled, found=found)


def _check_trained(checkpoint: Path) -> None:
    """Raise `InputError` for random weights that are taken for a checkpoint's: their bundle would not say what they are."""
    name = is_random(checkpoint)
    if name is not None:
        remedy = f"pass --random-weights {name if name in ARCHITECTURES else checkpoint}"
        raise InputError(f"checkpoint {checkpoint} carries random weights ({name}), on which nothing is measured: {remedy}")


def _check_evidence(recipe: Recipe, inputs: Ingredients) -> None:
    """What the measurement will be made with: weights, training pictures, the copy detector."""
    from nemo_edge.measure.replication import load_picture, load_sscd
    from nemo_edge.model.checkpoint import check_files

    check_files(recipe.checkpoint.path, allow_pickle=recipe.checkpoint.allow_pickle)
    for prompt in inputs.memorized:
        if prompt.image:
            load_picture(prompt.image, (8, 8))
    if recipe.fidelity.sscd:
        load_sscd(recipe.fidelity.sscd)
