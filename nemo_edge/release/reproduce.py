"""A bundle built again beside itself, and the two compared: whether its recipe still comes to the very model.

Nothing that a build has kept is taken, and nothing is measured, since that is no part of the identity. The bundle is left as it is.
"""

from __future__ import annotations

__all__ = ["Reproduced", "reproduce"]

from os import PathLike
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.identity import counted
from nemo_edge.bundle.manifest import Manifest, holding, named, open_verified, staging
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.release._cache import run_stages
from nemo_edge.release._preflight import preflight
from nemo_edge.release._stages import LazyCheckpoint, Work
from nemo_edge.release.build import with_weights
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import explain
from nemo_edge.system.progress import Progress


class Reproduced(BaseModel):
    """A bundle, and what its recipe came to once more."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    identity: str
    again: str
    """The identity that was built now."""
    differing: tuple[str, ...]
    """Names of the files of which only one of the two has any, or that are others in the two, in their order."""

    @property
    def passed(self) -> bool:
        """Whether it is the same model."""
        return self.identity == self.again


def reproduce(recipe: Recipe | str | PathLike[str], progress: Progress | None = None) -> Reproduced:
    """Build what a recipe says in a temporary folder beside its bundle, from nothing, and compare the two identities.

    Raises `InputError` where the recipe has no bundle yet and as `build`, `BundleError` for a bundle that was changed.
    """
    recipe, progress = recipe if isinstance(recipe, Recipe) else load_recipe(Path(recipe)), progress or Progress()
    output = recipe.output
    if not output.is_dir():
        raise InputError(f"{output} does not exist, so that there is nothing to compare with: build it first, without --check")
    with holding(output):
        before = open_verified(output)
        try:
            with staging(output) as beside:
                after = _built(recipe.model_copy(update={"output": beside / "bundle"}), beside / "files", before, progress)
        except OSError as error:
            raise explain(error, Path(error.filename or output)) from error
    one, other = counted(before.files, before.plans), counted(after.files, after.plans)
    differing = tuple(name for name in sorted({*one, *other}) if one.get(name) != other.get(name))
    return Reproduced(bundle=str(output), identity=before.identity, again=after.identity, differing=differing)


def _built(recipe: Recipe, folder: Path, manifest: Manifest, progress: Progress) -> Manifest:
    """Run the stages of a build in an empty folder; return the manifest with the files that these leave."""
    with progress.waiting("looking at the checkpoint, the prompts and this machine"):
        seen = preflight(recipe, progress)
    seen = with_weights(seen, recipe, progress)
    assert seen.inputs is not None
    folder.mkdir()
    work = Work(seen.recipe, seen.inputs, LazyCheckpoint(seen.recipe.checkpoint), folder, progress)
    hashes = run_stages(work, seen.keys, measuring=False)
    return named(folder, manifest.model_copy(update={"files": {}, "plans": {}}), hashes)
