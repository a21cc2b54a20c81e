"""TensorRT engines for a finished bundle, compiled where they will run: on a Jetson, say, or on a GPU that the build did not have.

They are made of the bundle's own ONNX files. Nothing is measured by this: a bundle that was examined with engines which are compiled anew
must not be shipped before it is measured again. Knows files and settings, nothing of memories.
"""

from __future__ import annotations

__all__ = ["Compiled", "compile_again"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.backends.tensorrt.flavours import FLAVOURS, check
from nemo_edge.bundle.manifest import Manifest, amend, holding, measured_no_more, open_verified
from nemo_edge.export.production import OnnxFile, plan_stage
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.recipe import Recipe, from_options, kept_recipe
from nemo_edge.recipe.targets import Flavour
from nemo_edge.release._inputs import used_versions
from nemo_edge.release.review import report_again
from nemo_edge.system.environment import machine
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.progress import Progress

_MODEL = "model.onnx"
_OPTIONS = {"targets": "target", "components": "component"}
"""Settings that the command line has under another name."""


class Compiled(BaseModel):
    """A bundle with more engines, or with some compiled anew."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    backend: Flavour
    engines: tuple[str, ...]
    """Their paths in the bundle."""
    seconds: float
    measured: bool
    """Whether what the bundle says was measured still holds for what it runs."""


def compile_again(bundle: Path, flavour: Flavour, given: Mapping[str, Any] | None = None, progress: Progress | None = None) -> Compiled:
    """Compile a finished bundle's ONNX files for this machine, or for `targets`, and put the engines and their hashes into the bundle.

    `given` are settings other than those that the bundle's recipe has for them, or else the usual ones. Every file is compared with its
    hash first. Raises `BundleError` for a bundle that was changed, `InputError` for settings that do not fit, `MissingDependency` before
    that where the compiler or the GPU that it needs is not here, `ExportError` for a graph that does not compile.
    """
    with holding(bundle):
        return _compiled(bundle, flavour, given or {}, progress or Progress())


def _compiled(bundle: Path, flavour: Flavour, given: Mapping[str, Any], progress: Progress) -> Compiled:
    manifest, table = open_verified(bundle), FLAVOURS[flavour].table
    recipe = kept_recipe(manifest.recipe, bundle)
    own = getattr(recipe, table)
    settings = from_options(FLAVOURS[flavour].settings, own.model_dump() if own else {}, given, _OPTIONS)
    check(flavour, settings)
    try:
        recipe = Recipe.model_validate({**manifest.recipe, table: settings.model_dump(mode="json")})
    except ValidationError as error:
        raise InputError(f"{bundle} takes no such engines: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    changed = _changed(manifest, recipe, flavour)
    made: list[tuple[str, float]] = []

    def write(staged: Path) -> None:
        plans = plan_stage(staged, _files(bundle, manifest), settings, flavour, staged, progress)
        made.extend((plan.plan, plan.build_s) for plan in plans)

    amend(bundle, changed, write)
    if changed.measured and manifest.random_weights is None:
        report_again(bundle)
    engines, seconds = tuple(name for name, _ in made), sum(s for _, s in made)
    return Compiled(bundle=str(bundle), backend=flavour, engines=engines, seconds=seconds, measured=changed.measured)


def _changed(manifest: Manifest, recipe: Recipe, flavour: Flavour) -> Manifest:
    """The manifest with the recipe and the versions of the engines; unmeasured where it was measured with engines of this flavour."""
    versions = {**manifest.versions, **used_versions(machine(), recipe)}
    changed = manifest.model_copy(update={"recipe": recipe.model_dump(mode="json"), "versions": versions})
    if recipe.engine.flavour != flavour or manifest.random_weights is not None:
        return changed
    return changed.model_copy(update={"gates": (measured_no_more("its engines were compiled anew"),), "passed": False})


def _files(bundle: Path, manifest: Manifest) -> list[OnnxFile]:
    """The bundle's ONNX files: of the UNet those of its variants."""
    left_out = {folder for variant, folder in UNET_FOLDERS.items() if variant not in manifest.variants}
    models = [name for name in manifest.files if Path(name).name == _MODEL and Path(name).parent.name not in left_out]
    if not models:
        raise BundleError(f"{bundle} has no ONNX files to compile: build it again")
    return [OnnxFile(name, open_graph(bundle / name).dtype()) for name in sorted(models)]
