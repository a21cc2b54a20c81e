"""A first recipe for a checkpoint: what it is, drawn as its kind is drawn, run by what runs on this machine.

Looks at the checkpoint, the lists of prompts and the machine, and writes a recipe that a dry run takes; builds nothing.
"""

from __future__ import annotations

__all__ = ["Draft", "Wish", "draft"]

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.backends.probes import Probe, probe_all
from nemo_edge.recipe.prompts import check_apart, distinct, read_prompts
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.schema import recipe_schema, schema_text
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.release._footprint import Need, estimate
from nemo_edge.release._found import Found, look
from nemo_edge.release._preflight import check_compiles
from nemo_edge.release._recipetext import recipe_text
from nemo_edge.system.compatibility import installed
from nemo_edge.system.environment import gpus
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import check_file, checkpoint_folder, write_atomically
from nemo_edge.system.reading import expanded, read_json

SCHEMA = "recipe.schema.json"
"""The schema's file, beside the recipe."""
_CALIBRATED, _MEASURED, _FEWEST = 300, 16, 3
"""General prompts that calibrate and that are drawn, where the list has so many; fewer than three are no list."""
_NAMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}


@dataclass(frozen=True)
class Wish:
    """What is asked for; None where it is for `draft` to say."""

    checkpoint: str
    memorized: Path | None = None
    general: Path | None = None
    recipe: Path | None = None
    """Where the recipe goes; a file of the checkpoint's name in the current folder else."""
    targets: tuple[str, ...] = ()
    """Compute capabilities of GPUs to compile for."""
    allow_pickle: bool = False
    force: bool = False
    """Write over a recipe that is there."""


class Draft(BaseModel):
    """The recipe that was written, and what it is founded on."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    schema_file: str
    found: Found
    engines: tuple[str, ...]
    """What runs and what is compiled here, a line each."""
    missing: tuple[str, ...]
    """Lists of prompts that the recipe names and that are still to be made."""
    remedy: str = ""
    """What to do where a build of it does not fit on this machine."""


def draft(wish: Wish) -> Draft:
    """Write a recipe, and its schema beside it.

    Raises `InputError` before anything is written: for a recipe that is there already, a checkpoint that is not built, a list of prompts
    that cannot be used, and a target that is not compiled for; `MissingDependency` for targets without the compiler.
    """
    name = _name(wish.checkpoint)
    file = wish.recipe or Path(f"{name}.toml")
    _check_free(file, wish.force)
    counts = _counts(wish)
    source = CheckpointSettings(path=wish.checkpoint, allow_pickle=wish.allow_pickle)
    found = look(source)
    probes = {probe.name: probe for probe in probe_all(gpus(), installed())}
    need, remedy = _need(source, file)
    values = {**_tables(wish, found, file, probes, need, counts), "name": name, "output": f"out/{name}"}
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"no recipe can be made of this: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    if wish.targets:
        check_compiles(recipe, checkpoint_folder(wish.checkpoint))
    missing = [str(way) for way, given in ((recipe.prompts.memorized, wish.memorized), (recipe.prompts.general, wish.general)) if not given]
    engines = _engines(list(probes.values()))
    write_atomically(file.parent / SCHEMA, schema_text())
    write_atomically(file, recipe_text(recipe, found, engines, missing, file.name, SCHEMA))
    schema = str(file.parent / SCHEMA)
    return Draft(recipe=str(file), schema_file=schema, found=found, engines=tuple(engines), missing=tuple(missing), remedy=remedy)


def _check_free(file: Path, force: bool) -> None:
    """Whether nothing is lost by what is written."""
    check_file(file)
    if file.suffix != ".toml":
        raise InputError(f"the recipe {file} does not end in .toml: name it so")
    if file.exists() and not force:
        raise InputError(f"the recipe {file} is there already: give another with --output, or --force to write over it")
    schema = file.parent / SCHEMA
    if schema.exists() and not _ours(schema):
        raise InputError(f"{schema} is there already and is not a recipe's schema: give a folder without it with --output")


def _ours(schema: Path) -> bool:
    try:
        return bool(read_json(schema)["title"] == recipe_schema()["title"])
    except (InputError, KeyError, TypeError):
        return False


def _counts(wish: Wish) -> dict[str, int]:
    """How many general prompts calibrate and are drawn; the usual where there is no list yet."""
    memorized = read_prompts(wish.memorized) if wish.memorized else []
    if wish.general is None:
        return {"calibrated": _CALIBRATED, "measured": _MEASURED}
    general = distinct(read_prompts(wish.general))
    if wish.memorized is not None:
        check_apart(general, memorized, wish.general, wish.memorized)
    if len(general) < _FEWEST:
        raise InputError(f"prompts file {wish.general} holds {len(general)} different prompts: add some, {_FEWEST} are the fewest")
    measured = min(_MEASURED, max(1, len(general) // 4))
    return {"calibrated": min(_CALIBRATED, len(general) - measured), "measured": measured}


def _need(source: CheckpointSettings, file: Path) -> tuple[Need | None, str]:
    """The largest type in which one variant fits here, and what to do where none does; nothing where its size is not known."""
    try:
        footprint = estimate(source.path, file.parent)
    except InputError:
        return None, ""
    fitting = [need for need in footprint.needs if need.variants == 1 and need.fits]
    return (fitting[0], "") if fitting else (None, footprint.remedy)


def _tables(
    wish: Wish, found: Found, file: Path, probes: dict[str, Probe], need: Need | None, counts: dict[str, int]
) -> dict[str, dict[str, Any]]:
    on_gpu = probes["onnxruntime cuda"].runs
    half = on_gpu or bool(wish.targets) or (need is not None and need.dtype == "fp16")
    device = "cuda" if probes["torch cuda"].runs else "cpu"
    engine = "openvino" if not on_gpu and probes["openvino"].runs else "onnxruntime"
    size = {name: pixels for name, pixels in (("height", found.height), ("width", found.width)) if pixels % 8 == 0}
    return {
        "checkpoint": {"path": _way_of_checkpoint(wish.checkpoint, file), "allow_pickle": wish.allow_pickle, "device": device},
        "prompts": {
            "memorized": _way(wish.memorized, file) if wish.memorized else "prompts/memorized.csv",
            "general": _way(wish.general, file) if wish.general else "prompts/general.txt",
        },
        "calibration": {"prompts": counts["calibrated"]},
        "localization": {"layers": found.layers},
        "export": {"variants": ["baked"], "dtype": "fp16" if half else "fp32"},
        "engine": {"backend": engine, "provider": "cuda" if on_gpu else "cpu"},
        "sampling": {**found.sampler.settings.model_dump(), **size},
        "fidelity": {"general_prompts": counts["measured"]},
        **({"tensorrt_rtx": {"targets": list(wish.targets)}} if wish.targets else {}),
    }


def _engines(probes: Sequence[Probe]) -> list[str]:
    """What runs here, what does not, and what is compiled here for other machines: a line each where there is something to say."""
    known = [probe for probe in probes if probe.backend in _NAMES]
    runs = [_called(probe) for probe in known if probe.runs]
    others = [f"{_called(probe)} ({probe.reason})" for probe in known if not probe.runs and not probe.compiles]
    elsewhere = [_called(probe) for probe in known if probe.compiles and not probe.runs]
    lines = [f"runs here: {', '.join(runs) or 'nothing'}"]
    lines += [f"compiled here for machines elsewhere: {', '.join(elsewhere)} (nemo-edge init --target sm86)"] if elsewhere else []
    return [*lines, *([f"not here: {'; '.join(others)}"] if others else [])]


def _called(probe: Probe) -> str:
    return f"{_NAMES[probe.backend]}{f' on {probe.provider}' if probe.provider else ''}"


def _name(checkpoint: str) -> str:
    """A name for the bundle: that of the checkpoint, of letters that a name may have."""
    last = expanded(checkpoint)
    own = last.resolve().stem if last.is_file() else last.resolve().name if last.exists() else checkpoint.rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", own, flags=re.ASCII).strip("-._")[:100] or "model"


def _way_of_checkpoint(checkpoint: str, file: Path) -> str:
    """The way that a recipe takes for one, and not for a name on the hub; that name as it is."""
    local = expanded(checkpoint)
    if not local.exists():
        return checkpoint
    way = _way(local, file)
    return way if way.startswith(".") or Path(way).is_absolute() or "/" not in way else f"./{way}"


def _way(path: Path, file: Path) -> str:
    """The way to a file from the recipe's folder; the whole path where there is none, as from one drive to another."""
    whole = expanded(path).absolute()
    try:
        return Path(os.path.relpath(whole, expanded(file).absolute().parent.resolve())).as_posix()
    except ValueError:
        return whole.as_posix()
