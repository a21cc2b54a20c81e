"""What a build is made from: the recipe's files, read and hashed, and from them the key of each stage.

A key is a hash of everything that a stage's result depends on, so that no result is taken for that of other inputs.
"""

from __future__ import annotations

__all__ = ["Ingredients", "bundle_key", "ingredients", "stage_keys", "used_versions"]

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_edge.recipe.prompts import Prompt, check_apart, distinct, read_prompts
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import SCORE
from nemo_edge.recipe.targets import FLAVOUR_OF
from nemo_edge.system.environment import USED, Machine, machine, packages_of
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import checkpoint_hashes, sha256_file, sha256_json, way_to

_CALIBRATED = ("layers", "seed", "samples", "steps")
"""The localization's settings that statistics and τ hang on."""
_NO_MATTER = ("rows", "prompts")
"""Those of them that only the time hangs on."""
_FORMAT = "ONNX files without the exporter's notes"
"""What exported files are like: those that were kept from before are not taken for them."""
_COUNTED = "copies of every known training picture"
"""What the measurement counts: one that counted less is not taken for it."""
_FEWEST = 2
"""General prompts that a standard deviation needs."""


@dataclass(frozen=True)
class Ingredients:
    """The recipe's files, read and hashed."""

    memorized: list[Prompt]
    general: list[Prompt]
    held_out: list[Prompt]
    checkpoint: dict[str, str]
    prompts: dict[str, str]
    """Path, as `way_to` tells it from the folder of the memorized prompts, and sha256 of every file that the recipe names."""
    statistics: str | None
    machine: Machine


def ingredients(recipe: Recipe) -> Ingredients:
    """Read and hash what the recipe names. Raises `InputError` for what is missing or cannot be used."""
    checkpoint = _checkpoint_hashes(recipe.checkpoint.path)
    if recipe.random_weights is not None:
        neurons = recipe.random_weights.neurons
        return Ingredients([], [], [], checkpoint, {neurons.name: sha256_file(_there(neurons))} if neurons else {}, None, machine())
    memorized = read_prompts(recipe.prompts.memorized)
    used, held_out = _general(recipe, memorized)
    memorized = memorized[: recipe.prompts.limit]
    files = [recipe.prompts.memorized, recipe.prompts.general]
    files += [_there(p) for p in (recipe.calibration.statistics, recipe.fidelity.sscd) if p is not None]
    files += [p.image for p in memorized if p.image]
    base = recipe.prompts.memorized.parent
    hashes = _hashes(files, base)
    statistics = sha256_file(recipe.calibration.statistics) if recipe.calibration.statistics else None
    return Ingredients(memorized, used, held_out, checkpoint, hashes, statistics, machine())


def used_versions(here: Machine, recipe: Recipe) -> dict[str, str]:
    """The versions that a build's results depend on, and not those of backends it does not use."""
    flavours = [flavour for table, flavour in FLAVOUR_OF.items() if getattr(recipe, table) is not None]
    packages = {*USED, *(name for flavour in flavours for name in packages_of(flavour, here.versions))}
    return {name: version for name, version in here.versions.items() if name in packages}


def stage_keys(recipe: Recipe, given: Ingredients) -> dict[str, str]:
    """A hash for each stage of everything its result depends on, the stages before it included."""
    r, here = recipe.model_dump(mode="json"), given.machine
    versions = {name: version for name, version in here.versions.items() if name in USED}
    if recipe.random_weights is not None:
        localize = sha256_json([versions, given.checkpoint, given.prompts, r["random_weights"], r["localization"]["layers"]])
        keys = {"localize": localize}
    else:
        general, memorized = [p.text for p in given.general], [p.text for p in given.memorized]
        method = r["localization"]
        device, settings = r["checkpoint"]["device"], [method[n] for n in _CALIBRATED]
        calibrate = sha256_json([SCORE, versions, given.checkpoint, device, general, r["calibration"], given.statistics, settings])
        search = {name: value for name, value in method.items() if name not in _NO_MATTER}
        localize = sha256_json([calibrate, memorized, [(p.url, p.cluster) for p in given.memorized], search])
        keys = {"calibrate": calibrate, "localize": localize}
        if "masked" in recipe.export.variants:
            keys["policies"] = sha256_json([localize, "policies"])
    export = sha256_json([localize, r["export"], _FORMAT])
    keys["export"] = export
    for table, product in FLAVOUR_OF.items():
        if r[table] is not None:
            compiler = packages_of(product, here.versions)
            gpus = [(gpu.name, gpu.driver) for gpu in here.gpus] if table == "tensorrt" else []
            keys[table] = sha256_json([export, r[table], compiler, gpus])
    flavour = recipe.engine.flavour
    used = next((keys[table] for table, value in FLAVOUR_OF.items() if value == flavour), None)
    run = [r["engine"], used, [(gpu.name, gpu.driver) for gpu in here.gpus]] if used else r["engine"]
    if recipe.random_weights is None:
        held_out = [p.text for p in given.held_out]
        keys["measure"] = sha256_json([export, run, given.prompts, held_out, r["sampling"], r["fidelity"], _COUNTED])
    if recipe.latency is not None:
        state: Any = {"gpus": {"__all__": {"clock_mhz", "temperature_c", "throttled_by"}}, "versions": True}
        keys["latency"] = sha256_json([export, run, r["sampling"], r["latency"], here.model_dump(mode="json", exclude=state)])
    return keys


def bundle_key(recipe: Recipe, keys: dict[str, str]) -> str:
    """A hash of all that the bundle depends on: those of its last stages, and what costs no work: its name, the gates, how it is run."""
    last = [keys[stage] for stage in keys if stage not in ("calibrate", "localize")]
    own = recipe.model_dump(mode="json", include={"name", "gates", "engine", "sampling"})
    return sha256_json([last, own])


def _general(recipe: Recipe, memorized: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """The general prompts that calibrate, the first of the list, and those that are measured, its last.

    Raises `InputError` for one that is memorized, be it beyond the recipe's limit, and where there are fewer than the recipe asks for.
    """
    path, calibrated, measured = recipe.prompts.general, recipe.calibration.prompts, recipe.fidelity.general_prompts
    general = distinct(read_prompts(path))
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


def _checkpoint_hashes(path: str) -> dict[str, str]:
    hashes = checkpoint_hashes(path)
    if not hashes:
        raise InputError(f"checkpoint {path} holds no files of a model: give a diffusers folder, a .safetensors file or a hub id")
    return hashes
