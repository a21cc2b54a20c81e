"""Is a picture a copy of a training picture? The tiled ℓ2 distance of Carlini et al. 2023, and SSCD where it is given.

Knows pictures only. Shapes: A and B pictures, K training pictures, R readings of them, H and W pixels, 3 channels; bytes.
"""

from __future__ import annotations

__all__ = [
    "COPIES",
    "TILES",
    "Training",
    "copy_threshold",
    "load_picture",
    "load_sscd",
    "nearest_readings",
    "sscd_similarities",
    "tiled_distances",
]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nemo_edge.measure.readings import load_readings
from nemo_edge.system.errors import InputError

TILES = 4
"""Tiles in each direction: 16 tiles of 128 × 128 pixels at 512 × 512, as in the paper."""

COPIES = 1e-3
"""Share of unrelated pairs that the threshold lets pass for copies; below 1,000 pairs it is close to their smallest distance."""


_AT_ONCE = 16
"""Pictures of which tiles are held as numbers at a time: 50 MB at 512 × 512."""


@dataclass(frozen=True)
class Training:
    """Training pictures, each in all its readings, one after the other."""

    pictures_RHW3: np.ndarray
    names: tuple[str, ...]
    """The name of each reading."""
    owners: tuple[int, ...]
    """The place of the training picture that each is a reading of, from 0 and without a gap."""

    @classmethod
    def of(cls, readings: Sequence[Mapping[str, np.ndarray]], size: tuple[int, int]) -> Training:
        """Of the readings of each training picture, bytes [H, W, 3] of `size`."""
        pictures = [picture for each in readings for picture in each.values()]
        names = tuple(name for each in readings for name in each)
        owners = tuple(place for place, each in enumerate(readings) for _ in each)
        return cls(np.stack(pictures) if pictures else np.empty((0, *size, 3), np.uint8), names, owners)

    def __len__(self) -> int:
        """How many training pictures there are."""
        return len(set(self.owners))

    def only(self, place: int) -> Training:
        """The readings of one training picture."""
        chosen = [index for index, owner in enumerate(self.owners) if owner == place]
        return Training(self.pictures_RHW3[chosen], tuple(self.names[i] for i in chosen), (0,) * len(chosen))

    def picture(self, place: int, name: str) -> np.ndarray:
        """One reading, [H, W, 3]; the first where none has this name."""
        own = self.only(place)
        return np.asarray(own.pictures_RHW3[own.names.index(name) if name in own.names else 0])


def load_picture(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a picture as bytes [H, W, 3] of `size` (height, width), in its likeliest reading; raises as `load_readings` does."""
    return next(iter(load_readings(path, size).values()))


def nearest_readings(pictures_AHW3: np.ndarray, training: Training) -> tuple[np.ndarray, np.ndarray]:
    """Return the tiled distance of each picture to each training picture in the reading that is nearest, [A, K], and the place of that
    reading among all, [A, K]."""
    distances_AR = tiled_distances(pictures_AHW3, training.pictures_RHW3)
    owners = np.asarray(training.owners, int)
    places = [np.flatnonzero(owners == k) for k in range(len(training))]
    chosen = [own[distances_AR[:, own].argmin(axis=1)] for own in places]
    nearest_AK = np.stack(chosen, axis=1) if chosen else np.empty((len(pictures_AHW3), 0), int)
    return np.take_along_axis(distances_AR, nearest_AK, axis=1), nearest_AK


def tiled_distances(a_AHW3: np.ndarray, b_BHW3: np.ndarray) -> np.ndarray:
    """Return the distance of each pair, [A, B]: the largest normalized ℓ2 distance between tiles at the same place.

    Carlini et al., "Extracting Training Data from Diffusion Models" (2023), §4.2: ℓ2(a, b) = sqrt(Σ (aᵢ - bᵢ)² / d) on
    pictures in [0, 1], taken per tile, so that two pictures with the same plain background are not near.
    """
    distances = np.empty((len(a_AHW3), len(b_BHW3)), np.float32)
    for start in range(0, len(b_BHW3), _AT_ONCE):
        b = _tiles(b_BHW3[start : start + _AT_ONCE])
        for place in range(len(a_AHW3)):
            gaps = np.square(_tiles(a_AHW3[place : place + 1]) - b).mean(axis=-1)
            distances[place, start : start + _AT_ONCE] = np.sqrt(gaps).max(axis=-1)
    return distances


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
