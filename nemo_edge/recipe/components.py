"""What the components of a model are called in a bundle, whatever they are made of."""

from __future__ import annotations

__all__ = ["UNET_FOLDERS"]

UNET_FOLDERS = {"baked": "unet", "masked": "unet_masked"}
"""Folder of each variant's UNet inside a bundle; a baked bundle has the layout of optimum's."""
