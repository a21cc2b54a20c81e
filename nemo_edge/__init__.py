"""nemo-edge ships text-to-image diffusion models as engines without their memorization neurons, with the evidence.

`build` from a recipe to a bundle, `load_recipe` the recipe · `detect`, `localize` memorized prompts and the neurons that hold them ·
`open_bundle`, `verify` a bundle's manifest and files · `load_pipeline`, `load_unet` its engines inside diffusers
"""

from __future__ import annotations

__all__ = [
    "__version__",
    "build",
    "detect",
    "load_pipeline",
    "load_recipe",
    "load_unet",
    "localize",
    "open_bundle",
    "verify",
]

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_edge.bundle.engines import verify
    from nemo_edge.bundle.manifest import open_bundle
    from nemo_edge.dropin.load import load_pipeline, load_unet
    from nemo_edge.localization.promptlists import detect, localize
    from nemo_edge.recipe.recipe import load_recipe
    from nemo_edge.release.build import build

__version__ = "0.1.0"

_MODULES = {
    "build": "nemo_edge.release.build",
    "detect": "nemo_edge.localization.promptlists",
    "load_pipeline": "nemo_edge.dropin.load",
    "load_recipe": "nemo_edge.recipe.recipe",
    "load_unet": "nemo_edge.dropin.load",
    "localize": "nemo_edge.localization.promptlists",
    "open_bundle": "nemo_edge.bundle.manifest",
    "verify": "nemo_edge.bundle.engines",
}
"""Where each public function is; its module is imported when it is asked for, since most need PyTorch."""

if not TYPE_CHECKING:  # a type checker would take any name for one that is here

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module 'nemo_edge' has no attribute {name!r}")
        try:
            return getattr(import_module(_MODULES[name]), name)
        except ModuleNotFoundError as error:
            from nemo_edge.system.errors import lacking

            raise (lacking(error) or error) from error


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
