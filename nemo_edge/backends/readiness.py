"""Whether this machine runs the engines of a bundle, or makes and runs those of one that is to be built, found out before the work.

Says so in the words of `fit`, which compares; looks at the machine, at sidecars and at headers, and opens no plan.
"""

from __future__ import annotations

__all__ = ["check_compiles", "check_plans", "check_runs"]

from collections.abc import Sequence
from pathlib import Path

from nemo_edge.backends import onnxruntime
from nemo_edge.backends.tensorrt.backend import plan_files
from nemo_edge.backends.tensorrt.fit import product_of, serves
from nemo_edge.backends.tensorrt.flavours import check, check_runtime, fit_here
from nemo_edge.model.configuration import upcasts_decoder
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.targets import FLAVOUR_OF, Flavour, unfit_for_turing
from nemo_edge.system.errors import InputError, MissingDependency


def check_runs(recipe: Recipe) -> None:
    """Raise `MissingDependency` unless what a recipe's engines are to be run with is here, and runs what it compiles."""
    engine = recipe.engine
    if engine.flavour is None:
        onnxruntime.probe_provider(engine.provider)
        return
    here, _ = check_runtime(engine.flavour)
    targets = recipe.tensorrt_rtx.targets if recipe.tensorrt_rtx and engine.flavour == "tensorrt-rtx" else None
    if targets is not None and not serves(engine.flavour, targets, here):
        raise MissingDependency(
            f"the TensorRT-RTX engines that [tensorrt_rtx] compiles do not run here, and engine.backend = 'tensorrt-rtx' runs them: "
            f"this machine has {here}; change its targets, or the backend"
        )


def check_compiles(recipe: Recipe, model: Path) -> None:
    """Find out whether what a recipe says of a model, a local checkpoint or the configurations of one, is compiled here.

    Raises `InputError` for a type that a target lacks, `MissingDependency` for a compiler or a GPU that is not here.
    """
    upcast = recipe.export.dtype != "fp32" and recipe.tensorrt_rtx is not None and upcasts_decoder(model)
    why = unfit_for_turing(recipe.tensorrt_rtx, {"vae_decoder": "fp32"}) if recipe.tensorrt_rtx and upcast else ""
    if why:
        raise InputError(f"{why}; the checkpoint's VAE decodes in fp32 (force_upcast)")
    for table, flavour in FLAVOUR_OF.items():
        if getattr(recipe, table) is not None:
            check(flavour, getattr(recipe, table))


def check_plans(bundle: Path, places: Sequence[str], flavour: Flavour) -> None:
    """Raise `MissingDependency` unless the first GPU runs an engine of each component, `InputError` for a bundle that lacks one."""
    found = {place: plan_files(bundle, place, flavour) for place in places}
    for place, plans in found.items():
        fits = [fit_here(bundle, plan) for plan in plans]
        if not any(fit.runs for fit in fits):
            remedy = f": {fits[0].remedy}" if fits[0].remedy else ""
            raise MissingDependency(f"the {product_of(flavour)} engine of {place} in {bundle}: {fits[0].reason}{remedy}")
