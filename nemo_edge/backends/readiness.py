"""Whether this machine runs the TensorRT engines of a bundle, found out before one is opened.

Says so in the words of `fit`, which compares; looks at the machine, at sidecars and at headers, and opens no plan.
"""

from __future__ import annotations

__all__ = ["check_plans"]

from collections.abc import Sequence
from pathlib import Path

from nemo_edge.backends.tensorrt.backend import plan_files
from nemo_edge.backends.tensorrt.fit import product_of
from nemo_edge.backends.tensorrt.flavours import fit_here
from nemo_edge.recipe.targets import Flavour
from nemo_edge.system.errors import MissingDependency


def check_plans(bundle: Path, places: Sequence[str], flavour: Flavour) -> None:
    """Raise `MissingDependency` unless the first GPU runs an engine of each component, `InputError` for a bundle that lacks one."""
    found = {place: plan_files(bundle, place, flavour) for place in places}
    for place, plans in found.items():
        fits = [fit_here(bundle, plan) for plan in plans]
        if not any(fit.runs for fit in fits):
            remedy = f": {fits[0].remedy}" if fits[0].remedy else ""
            raise MissingDependency(f"the {product_of(flavour)} engine of {place} in {bundle}: {fits[0].reason}{remedy}")
