"""From a recipe to a bundle: one look, then the stages that are not done, then the verdict; the bundle appears whole, by one rename.

A localization that was interrupted goes on where it stopped, any other stage begins again.
"""

from __future__ import annotations

__all__ = ["BuildResult", "Plan", "build", "plan"]

from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.display import pictures_html
from nemo_edge.bundle.manifest import MANIFEST, Manifest, open_bundle, publish, staging
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.release._cache import is_kept, prune, run_stages
from nemo_edge.release._forecast import Forecast, forecast
from nemo_edge.release._preflight import preflight
from nemo_edge.release._stages import LazyCheckpoint, Work
from nemo_edge.system.files import explain, sha256_file
from nemo_edge.system.outputs import lock
from nemo_edge.system.processes import run_in_process
from nemo_edge.system.progress import Progress

_LOOKS = "looking at the checkpoint, the prompts and this machine"


class Plan(BaseModel):
    """What a build would do: the key of each stage, and whether its result is there already."""

    model_config = ConfigDict(frozen=True)

    name: str
    output: str
    key: str
    up_to_date: bool
    """The bundle is there, made from exactly this, with every file as it was."""
    stages: dict[str, str]
    done: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """What was assumed of the checkpoint: a line each."""
    forecast: Forecast
    """What it is made from, and what it takes."""


class BuildResult(BaseModel):
    """The bundle that is there now."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    skipped: bool
    """No work was done: the bundle was up to date."""
    manifest: Manifest
    identity: str = ""
    """sha256 of the manifest's file, by which whoever gets the bundle knows it."""

    @property
    def passed(self) -> bool:
        """Whether every gate passed; one of random weights has none to pass."""
        return self.manifest.passed or self.manifest.random_weights is not None

    def _repr_html_(self) -> str:
        """The verdict, the first prompt's pictures and the gates, for a notebook."""
        return pictures_html(Path(self.bundle), self.manifest.variants[0]) + self.manifest._repr_html_()


def plan(recipe: Recipe | str | PathLike[str], progress: Progress | None = None) -> Plan:
    """Read the inputs, hash them, and say what would run; raises what `build` would raise before its stages."""
    recipe, progress = _loaded(recipe), progress or Progress()
    with progress.waiting(_LOOKS):
        seen = preflight(recipe, progress)
    output = seen.recipe.output
    return Plan(
        name=seen.recipe.name,
        output=str(output),
        key=seen.key,
        up_to_date=seen.up_to_date,
        stages=seen.keys if seen.inputs else {"random weights": ""},
        done=tuple(stage for stage, key in seen.keys.items() if is_kept(output, stage, key)),
        notes=seen.notes,
        forecast=forecast(seen),
    )


def build(recipe: Recipe | str | PathLike[str], progress: Progress | None = None, *, file: str = "") -> BuildResult:
    """Build the bundle, or find it up to date. A failed gate does not stop the bundle, it marks it.

    Args:
        recipe: A recipe, or the path of one.
        progress: Who is told how far it is, as `nemo_edge.cli.console.Bars()`; else nobody.
        file: Name of the file that the recipe was read from, for the report; else the path's.

    Returns:
        The bundle's folder, its manifest, and whether every gate `passed`; pictures and gates in a notebook.

    Raises:
        InputError: For inputs that cannot be used, and for too little memory.
        MissingDependency: For a provider or a compiler that is not here.
        ExportError: For a graph that does not agree with eager.

    Example:
        >>> result = nemo_edge.build("recipe.toml")
        >>> result.bundle, result.passed
        ('out', True)
    """
    file = file or ("" if isinstance(recipe, Recipe) else Path(recipe).name)
    recipe, progress = _loaded(recipe), progress or Progress()
    output = recipe.output
    try:
        with progress.waiting(_LOOKS):
            seen = preflight(recipe, progress)
        with lock(output):
            if seen.inputs is None:
                _make_weights(seen.recipe, progress)
                with progress.waiting(_LOOKS):
                    seen = preflight(recipe, progress)
            if seen.up_to_date:
                return _result(output, open_bundle(output), skipped=True)
            assert seen.inputs is not None
            for note in seen.notes:
                progress.note(note)
            with staging(output) as bundle:
                work = Work(seen.recipe, seen.inputs, LazyCheckpoint(seen.recipe.checkpoint), bundle, progress, file=file)
                hashes = run_stages(work, seen.keys)
                with progress.waiting("judging it, and writing its report"):
                    from nemo_edge.release._judgement import conclude  # after the stages, whose processes need the memory

                    manifest = publish(bundle, output, conclude(work, seen.key), hashes)
            prune(output, progress.note)
    except OSError as error:
        raise explain(error, Path(error.filename or output)) from error
    return _result(output, manifest, skipped=False)


def _result(output: Path, manifest: Manifest, *, skipped: bool) -> BuildResult:
    return BuildResult(bundle=str(output), skipped=skipped, manifest=manifest, identity=sha256_file(output / MANIFEST))


def _loaded(recipe: Recipe | str | PathLike[str]) -> Recipe:
    return recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe))


def _make_weights(recipe: Recipe, progress: Progress) -> None:
    """Make the random weights that a recipe wants, where its checkpoint is looked for."""
    assert recipe.random_weights is not None
    wanted, folder = recipe.random_weights, Path(recipe.checkpoint.path)
    function = "nemo_edge.release.random_weights.write_random"
    run_in_process("make random weights", progress, function, wanted.architecture, folder, "fp16", wanted.seed)
