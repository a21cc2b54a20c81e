"""nemo-edge ships text-to-image diffusion models as engines without their memorization neurons, with the evidence."""

from __future__ import annotations

__all__ = ["__version__", "load_pipeline", "load_unet"]

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_edge.dropin.load import load_pipeline, load_unet

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import what needs PyTorch only when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'nemo_edge' has no attribute {name!r}")
    from nemo_edge.dropin import load

    return getattr(load, name)
