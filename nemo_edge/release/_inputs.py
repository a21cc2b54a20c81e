"""What a build is made from: the files that its recipe names, read and hashed, and the machine.

Knows recipes, prompts and hashes; nothing of what is done with them.
"""

from __future__ import annotations

__all__ = ["Inputs", "read_inputs", "used_versions"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_edge.recipe.prompts import Prompt, check_apart, distinct, read_prompts
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.recipe.targets import FLAVOUR_OF
from nemo_edge.system.environment import USED, Machine, machine, packages_of
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import checkpoint_hashes, sha256_file, way_to

_FEWEST = 2
"""General prompts that a standard deviation needs."""


@dataclass(frozen=True)
class Inputs:
    """The recipe's files, read and hashed."""

    memorized: list[Prompt]
    general: list[Prompt]
    """Those that calibrate."""
    held_out: list[Prompt]
    """Those that are measured."""
    checkpoint: dict[str, str]
    """Path and sha256 of every file of the checkpoint."""
    prompts: dict[str, str]
    """Path, as `way_to` tells it from the folder of the memorized prompts, and sha256 of every other file that the recipe names."""
    statistics: str | None
    """sha256 of the statistics, where the recipe names some."""
    machine: Machine
    controls: dict[str, str] = field(default_factory=dict)
    """Name and sha256 of each picture that an attack's results are held against."""
    ranges: str | None = None
    """sha256 of the ranges of activations, where the recipe names some."""


def read_inputs(recipe: Recipe, tell: Callable[[str], None] | None = None) -> Inputs:
    """Read and hash what the recipe names; `tell` gets a line on each list. Raises `InputError` for what is missing or cannot be used."""
    checkpoint = _checkpoint_hashes(recipe.checkpoint)
    ranges = recipe.quantization.ranges if recipe.quantization else None
    ranged = sha256_file(_there(ranges)) if ranges else None
    if recipe.random_weights is not None:
        neurons = recipe.random_weights.neurons
        given = {neurons.name: sha256_file(_there(neurons))} if neurons else {}
        return Inputs([], [], [], checkpoint, given, None, machine(), ranges=ranged)
    memorized = read_prompts(recipe.prompts.memorized, tell=tell)
    used, held_out = _general(recipe, memorized, tell)
    memorized = memorized[: recipe.prompts.limit]
    files = [recipe.prompts.memorized, recipe.prompts.general]
    files += [_there(p) for p in (recipe.calibration.statistics, recipe.fidelity.sscd) if p is not None]
    files += [p.image for p in memorized if p.image]
    base = recipe.prompts.memorized.parent
    hashes = _hashes(files, base)
    statistics = sha256_file(recipe.calibration.statistics) if recipe.calibration.statistics else None
    return Inputs(memorized, used, held_out, checkpoint, hashes, statistics, machine(), _controls(recipe, memorized), ranged)


def used_versions(here: Machine, recipe: Recipe) -> dict[str, str]:
    """The versions that a build's results depend on, and not those of backends it does not use."""
    flavours = [flavour for table, flavour in FLAVOUR_OF.items() if getattr(recipe, table) is not None]
    packages = {*USED, *(name for flavour in flavours for name in packages_of(flavour, here.versions))}
    packages |= {"openvino"} if recipe.uses_openvino else set()
    return {name: version for name, version in here.versions.items() if name in packages}


def _controls(recipe: Recipe, memorized: Sequence[Prompt]) -> dict[str, str]:
    """The control pictures of an attack. Raises `InputError` for inputs that cannot be attacked."""
    if recipe.attack is None:
        return {}
    from nemo_edge.measure.attacks.controls import check_inputs

    pictures = check_inputs(memorized, recipe.prompts.memorized, recipe.attack)
    return {picture.name: sha256_file(picture) for picture in pictures}


def _general(recipe: Recipe, memorized: Sequence[Prompt], tell: Callable[[str], None] | None) -> tuple[list[Prompt], list[Prompt]]:
    """The general prompts that calibrate, the first of the list, and those that are measured, its last.

    Raises `InputError` for one that is memorized, be it beyond the recipe's limit, and where there are fewer than the recipe asks for.
    """
    path, calibrated, measured = recipe.prompts.general, recipe.calibration.prompts, recipe.fidelity.general_prompts
    general = distinct(read_prompts(path, tell=tell))
    check_apart(general, memorized, path, recipe.prompts.memorized)
    lacking = calibrated + measured - len(general)
    if lacking > 0:
        raise InputError(
            f"prompts file {path} holds {len(general)} different general prompts, but the recipe asks for {calibrated + measured} "
            f"(calibration.prompts = {calibrated}, fidelity.general_prompts = {measured}): {_fitting(len(general), measured)}add {lacking} "
            f"prompt{'s' if lacking > 1 else ''}"
        )
    return general[:calibrated], general[-measured:]


def _fitting(count: int, measured: int) -> str:
    """What a recipe would ask for of so many general prompts; nothing where they are too few for any."""
    if count < _FEWEST + 1:
        return ""
    fewer = min(measured, max(1, count // 4)) if count - measured < _FEWEST else measured
    settings = f"calibration.prompts = {count - fewer}" + (f" and fidelity.general_prompts = {fewer}" if fewer < measured else "")
    return f"set {settings} in the recipe, or "


def _hashes(files: Sequence[Path], base: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in files:
        name, digest = way_to(path, base).as_posix(), sha256_file(path)
        found[name if found.get(name, digest) == digest else f"{digest[:12]}/{name}"] = digest
    return found


def _there(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"{path}, which the recipe names, does not exist")
    return path


def _checkpoint_hashes(source: CheckpointSettings) -> dict[str, str]:
    hashes = checkpoint_hashes(source.path, source.fused, source.clip_skip)
    if len(hashes) == len(source.fused) + bool(source.clip_skip):
        raise InputError(f"checkpoint {source.path} holds no files of a model: give a diffusers folder, a .safetensors file or a hub id")
    return hashes
