"""Known pictures: the training pictures that an attack is to bring back, and those that the model never saw, which say what it paints.

Knows pictures and lists of prompts, no models.
"""

from __future__ import annotations

__all__ = ["Known", "check_controls", "check_inputs", "check_unseen", "known_prompts", "list_controls"]

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from nemo_edge.measure.readings import load_readings
from nemo_edge.measure.replication import Training, nearest_readings, tiled_distances
from nemo_edge.recipe.prompts import Prompt, check_apart
from nemo_edge.recipe.settings import AttackSettings
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file

_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_NAMED = 3
"""Prompts that a complaint names."""
_ALIKE = 2
"""Pictures of a prompt that can be alike."""


@dataclass(frozen=True)
class Known:
    """A picture that is attacked, and the size (height, width) in which pictures are drawn; its prompt is empty where it has none.

    Of a prompt whose training picture is not known (`path` is None) the pictures of different seeds are compared with each other.
    """

    path: Path | None
    size: tuple[int, int]
    prompt: str = ""

    @cached_property
    def digest(self) -> str:
        """sha256 of the file; empty without one."""
        return sha256_file(self.path) if self.path else ""

    @cached_property
    def training(self) -> Training:
        """Its readings."""
        return Training.of([load_readings(self.path, self.size)] if self.path else [], self.size)

    def distances(self, pictures_SHW3: np.ndarray) -> np.ndarray:
        """The tiled distance of each picture to it, in the reading that is nearest, [S]; where it is not known, that to the other
        pictures, their median: a memory looks the same whatever the seed."""
        if self.path is None:
            return np.asarray([np.median(np.delete(row, i)) for i, row in enumerate(tiled_distances(pictures_SHW3, pictures_SHW3))])
        distances_S: np.ndarray = nearest_readings(pictures_SHW3, self.training)[0][:, 0]
        return distances_S

    def limit(self, threshold: float) -> float:
        """The largest distance of a copy: the threshold, or that of its own mean colour where that is nearer, in any reading."""
        means = [np.broadcast_to(p.mean((0, 1)).round().astype(np.uint8), p.shape) for p in self.training.pictures_RHW3]
        pairs = zip(means, self.training.pictures_RHW3, strict=True)
        return min([threshold, *(float(tiled_distances(mean[None], own[None])[0, 0]) for mean, own in pairs)])

    def nearest(self, pictures_SHW3: np.ndarray) -> np.ndarray:
        """The reading of it that the nearest of some pictures is nearest to, bytes [H, W, 3]."""
        distances_S1, places_S1 = nearest_readings(pictures_SHW3, self.training)
        return np.asarray(self.training.pictures_RHW3[places_S1[distances_S1[:, 0].argmin(), 0]])


def check_inputs(listed: Sequence[Prompt], prompts: Path, settings: AttackSettings) -> tuple[Path, ...]:
    """Return the control pictures of an attack on a list of prompts, which was read from `prompts`.

    Raises `InputError` for prompts and controls that it cannot use with these settings.
    """
    controls = check_controls(settings, known_prompts(listed, prompts, settings))
    try:
        check_apart([Prompt(text=settings.unrelated)], listed, "", prompts)
    except InputError as error:
        raise InputError(
            f"the unrelated prompt {settings.unrelated!r} stands in {prompts} as a memorized one: give another (--unrelated, or "
            "attack.unrelated)"
        ) from error
    return controls


def known_prompts(prompts: Sequence[Prompt], path: Path, settings: AttackSettings) -> tuple[Prompt, ...]:
    """Return the prompts of a list that are attacked, each text and picture once, the first `settings.limit` of them.

    Raises `InputError` where the training picture of one of them is not known, but for attacks with text that need none.
    """
    different = tuple({(prompt.text, prompt.image): prompt for prompt in prompts}.values())[: settings.limit]
    unknown = [prompt.text for prompt in different if prompt.image is None]
    if not unknown:
        return different
    named = ", ".join(map(repr, unknown[:_NAMED])) + (", …" if len(unknown) > _NAMED else "")
    lacking = f"prompts file {path}: no training picture is known for {len(unknown)} of {len(different)} prompts ({named})"
    if settings.starts:
        raise InputError(
            f"{lacking}, and the embedding attack needs the picture it is to bring back: name it in a column image, leave these prompts "
            "out, or attack with text alone (attack.starts = [])"
        )
    if len(unknown) < len(different):
        raise InputError(f"{lacking}: name them in a column image, or attack these prompts and the others one after the other")
    if settings.seeds < _ALIKE:
        raise InputError(
            f"{lacking}: what comes back is then told by pictures of different seeds, so attack.seeds must be {_ALIKE} or more"
        )
    return different


def check_controls(settings: AttackSettings, prompts: Sequence[Prompt]) -> tuple[Path, ...]:
    """Return the control pictures, the first `settings.limit` of them; none where no training picture is known.

    Raises `InputError` where there are none and an attack looks for known pictures.
    """
    if all(prompt.image is None for prompt in prompts):
        return ()
    if settings.controls is None:
        raise InputError(
            "no folder of control pictures is given (--controls, or attack.controls): without pictures that the model never saw nobody can "
            "tell a memory from what the attack paints; give some that are like the training pictures"
        )
    return list_controls(settings.controls)[: settings.limit]


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
