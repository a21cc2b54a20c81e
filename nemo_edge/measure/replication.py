"""Is a picture a copy of a training picture? The tiled ℓ2 distance of Carlini et al. 2023, and SSCD where it is given.

Knows pictures only. Shapes: A and B pictures, H and W pixels, 3 channels; bytes.
"""

from __future__ import annotations

__all__ = ["COPIES", "TILES", "copy_threshold", "load_picture", "load_sscd", "sscd_similarities", "tiled_distances"]

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from nemo_edge.system.errors import InputError

TILES = 4
"""Tiles in each direction: 16 tiles of 128 × 128 pixels at 512 × 512, as in the paper."""

COPIES = 1e-3
"""Share of unrelated pairs that the threshold lets pass for copies; below 1,000 pairs it is close to their smallest distance."""


def load_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a picture as bytes [H, W, 3], resized to `size` (height, width). Raises `InputError` for anything else."""
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize(size[::-1], Image.Resampling.BICUBIC))
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise InputError(f"the training picture {path} cannot be read as an image: {error}") from error


def tiled_distances(a_AHW3: np.ndarray, b_BHW3: np.ndarray) -> np.ndarray:
    """Return the distance of each pair, [A, B]: the largest normalized ℓ2 distance between tiles at the same place.

    Carlini et al., "Extracting Training Data from Diffusion Models" (2023), §4.2: ℓ2(a, b) = sqrt(Σ (aᵢ - bᵢ)² / d) on
    pictures in [0, 1], taken per tile, so that two pictures with the same plain background are not near.
    """
    a, b = _tiles(a_AHW3), _tiles(b_BHW3)
    return np.stack([np.sqrt(np.square(row[None] - b).mean(axis=-1)).max(axis=-1) for row in a])


def copy_threshold(unrelated: np.ndarray) -> float:
    """Return the distance below which a picture is a copy: `COPIES` of the distances between unrelated pictures lie below."""
    return float(np.quantile(unrelated, COPIES))


def sscd_similarities(a_AHW3: np.ndarray, b_BHW3: np.ndarray, model: Path) -> np.ndarray:
    """Return the cosine similarity of SSCD embeddings, [A, B] (Pizzi et al. 2022); `model` is its TorchScript file.

    Pictures are resized to 320 × 320 and normalized as ImageNet's, as in NeMo's evaluation. Raises `InputError` for a file
    that is not TorchScript.
    """
    import torch

    network = load_sscd(model)

    @torch.no_grad()
    def embedded(pictures: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
        x = torch.nn.functional.interpolate(x, (320, 320), mode="bilinear", antialias=True)
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        out: torch.Tensor = network((x - mean[:, None, None]) / std[:, None, None])
        return torch.nn.functional.normalize(out, dim=-1)

    similarities: np.ndarray = (embedded(a_AHW3) @ embedded(b_BHW3).T).numpy()
    return similarities


@cache
def load_sscd(model: Path) -> Any:
    """Open SSCD's TorchScript file. Raises `InputError` for any other file."""
    import torch

    try:
        return torch.jit.load(str(model), map_location="cpu").eval()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{model} is not SSCD's TorchScript file (sscd_disc_mixup.torchscript.pt)") from error


def _tiles(pictures: np.ndarray) -> np.ndarray:
    """[A, H, W, 3] bytes → [A, tiles, pixels of a tile × 3] in [0, 1]; what does not fill a tile is cut off."""
    count, height, width, _ = pictures.shape
    h, w = height // TILES, width // TILES
    cut = pictures[:, : h * TILES, : w * TILES].astype(np.float32) / 255
    return cut.reshape(count, TILES, h, TILES, w, 3).transpose(0, 1, 3, 2, 4, 5).reshape(count, TILES * TILES, h * w * 3)
