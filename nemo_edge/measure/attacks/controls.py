"""Known pictures: the training pictures that an attack is to bring back, and those that the model never saw, which say what it paints.

Knows pictures and lists of prompts, no models.
"""

from __future__ import annotations

__all__ = ["Known", "check_unseen", "list_controls", "with_pictures"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nemo_edge.measure.readings import load_readings
from nemo_edge.measure.replication import Training, nearest_readings
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_NAMED = 3
"""Prompts that a complaint names."""


@dataclass(frozen=True)
class Known:
    """A picture that is attacked, and the size (height, width) in which pictures are drawn; its prompt is empty where it has none."""

    path: Path
    size: tuple[int, int]
    prompt: str = ""

    @cached_property
    def digest(self) -> str:
        """sha256 of the file."""
        return sha256_file(self.path)

    @cached_property
    def training(self) -> Training:
        """Its readings."""
        return Training.of([load_readings(self.path, self.size)], self.size)

    def distances(self, pictures_SHW3: np.ndarray) -> np.ndarray:
        """The tiled distance of each picture to it, in the reading that is nearest, [S]."""
        distances_S: np.ndarray = nearest_readings(pictures_SHW3, self.training)[0][:, 0]
        return distances_S

    def nearest(self, pictures_SHW3: np.ndarray) -> np.ndarray:
        """The reading of it that the nearest of some pictures is nearest to, bytes [H, W, 3]."""
        distances_S1, places_S1 = nearest_readings(pictures_SHW3, self.training)
        return np.asarray(self.training.pictures_RHW3[places_S1[distances_S1[:, 0].argmin(), 0]])


def with_pictures(prompts: Sequence[Prompt], path: Path) -> tuple[Prompt, ...]:
    """Return the prompts of a list, each text once. Raises `InputError` where the training picture of one of them is not known."""
    unknown = [prompt.text for prompt in prompts if prompt.image is None]
    if unknown:
        named = ", ".join(map(repr, unknown[:_NAMED])) + (", …" if len(unknown) > _NAMED else "")
        raise InputError(
            f"prompts file {path}: no training picture is known for {len(unknown)} of {len(prompts)} prompts ({named}), and the embedding "
            "attack needs the picture it is to bring back: name it in a column image, or leave these prompts out"
        )
    return tuple({(prompt.text, prompt.image): prompt for prompt in prompts}.values())


def list_controls(folder: Path) -> tuple[Path, ...]:
    """Return the pictures of a folder, by name. Raises `InputError` where there are none."""
    if not folder.is_dir():
        raise InputError(f"the folder of control pictures {folder} {'is a file' if folder.exists() else 'does not exist'}: give a folder")
    found = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES and path.is_file()))
    if not found:
        raise InputError(
            f"the folder of control pictures {folder} holds no picture ({', '.join(_PICTURES)}): without pictures that the model never saw "
            "nobody can tell a memory from what the attack paints; put some in that are like the training pictures"
        )
    return found


def check_unseen(controls: Sequence[Known], memories: Sequence[Known], threshold: float) -> None:
    """Raise `InputError` where a control, in any reading, is a copy of a training picture."""
    for control in controls:
        for memory in memories:
            distance = float(memory.distances(control.training.pictures_RHW3).min())
            if distance <= threshold:
                raise InputError(
                    f"the control picture {control.path} is the training picture {memory.path} (distance {distance:.3f}; a copy is at most "
                    f"{threshold:.3f}): the model has seen it, so take it out of the folder"
                )
