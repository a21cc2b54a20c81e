"""nemo-edge ships text-to-image diffusion models as engines that do not give back their training images."""

from __future__ import annotations

__all__ = ["__version__"]

__version__ = "0.1.0"
