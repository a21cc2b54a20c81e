"""Runs the stages whose results are not there yet, and puts all results into a bundle.

Results are kept in `.<bundle>.build/<stage>-<key>/` beside the bundle, with the hash of each file: those of the settings that were used
last, and of the settings before, so that going back and forth between two costs nothing. Knows folders and hashes; what a stage does is
its own business.
"""

from __future__ import annotations

__all__ = ["cache_of", "is_cache", "is_kept", "prune", "run_stages", "times_of"]

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from nemo_edge.release._stages import Stage, Work, stages_of
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import copy_tree, inside, sha256_file, write_atomically
from nemo_edge.system.outputs import beside, discard, remove, unfinished
from nemo_edge.system.reading import read_json

_RECORD = "stage.json"
_TIMES = "times.json"
_LONGEST_S = 1e9
"""Seconds that a stage may say it took."""
_KEPT = 2
"""Results of each stage that are kept: of the settings used last, and of those before."""
_WEIGHTS = "weights"
_RESULTS = re.compile(r"(?P<stage>.+)-[0-9a-f]{12}")


def cache_of(output: Path) -> Path:
    """Where a build of the bundle `output` keeps the results of its stages."""
    return beside(output, "build")


def is_cache(folder: Path) -> bool:
    """Whether a folder holds nothing but such results, and at least one."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return any(map(_RESULTS.fullmatch, names)) and all(
        _RESULTS.fullmatch(name) or name in ("lock", _TIMES) or name.startswith(".") for name in names
    )


def is_kept(output: Path, stage: str, key: str) -> bool:
    """Whether a stage has left its results under this key; whether they are whole is not asked."""
    return (_folder(output, stage, key) / _RECORD).is_file()


def times_of(output: Path) -> dict[str, float]:
    """Return the seconds that each stage of a bundle's build took when it last ran from its beginning to its end."""
    try:
        found = read_json(cache_of(output) / _TIMES)
    except InputError:
        return {}
    told = found.items() if isinstance(found, dict) else ()
    return {stage: float(seconds) for stage, seconds in told if isinstance(seconds, int | float) and 0 <= seconds < _LONGEST_S}


def run_stages(work: Work, keys: Mapping[str, str], *, measuring: bool = True) -> dict[str, str]:
    """Fill `work.bundle`, stage by stage; return the hashes of the files in it that are known already.

    What a stage left before is taken where its key is the same and its files are as it left them. Without `measuring` those that only
    measure are left out.
    """
    hashes: dict[str, str] = {}
    for left in unfinished(cache_of(work.recipe.output)):
        remove(left)
    stages = [stage for stage in stages_of(work.recipe) if measuring or not stage.apart]
    kept = [stage.name for stage in stages if stage.key is not None]
    for stage in stages:
        if stage.key is None:
            with work.progress.waiting(stage.name):
                stage.work(work, work.bundle)
            continue
        folder = _folder(work.recipe.output, stage.name, keys[stage.name])
        called = f"stage {kept.index(stage.name) + 1} of {len(kept)}, {stage.name}"
        private = (_RECORD, *stage.private)
        with work.progress.waiting(called):  # what a stage opens, hashes and copies beside its tasks takes long, too
            found = _results(stage, work, folder, called)
            copy_tree(folder, work.bundle, leave=private)
        work.results[stage.name] = folder
        hashes |= {name: digest for name, digest in found.items() if Path(name).parts[0] not in private}
    return hashes


def prune(output: Path, tell: Callable[[str], None] = lambda note: None) -> None:
    """Remove the results of settings that were not used for longest, for whoever holds the output's lock, as far as they can be removed.

    Random weights are no stage's: what is timed later is made of them.
    """
    found: dict[str, list[Path]] = {}
    with suppress(OSError):
        for folder in cache_of(output).iterdir():
            named = _RESULTS.fullmatch(folder.name)
            if named and named["stage"] != _WEIGHTS and folder.is_dir():
                found.setdefault(named["stage"], []).append(folder)
        for folders in found.values():
            for folder in sorted(folders, key=lambda each: each.stat().st_mtime_ns, reverse=True)[_KEPT:]:
                discard(folder)
                tell(f"{folder.name}: the results of settings from before the last {_KEPT} are removed")


def _folder(output: Path, stage: str, key: str) -> Path:
    return cache_of(output) / f"{stage}-{key[:12]}"


def _results(stage: Stage, work: Work, folder: Path, called: str) -> dict[str, str]:
    """The hash of each file of a stage's results in `folder`, which are made now unless they are there as they were left."""
    record = folder / _RECORD
    found = _recorded(record)
    if found and all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in found.items()):
        work.progress.note(f"{called}: nothing has changed")
        os.utime(folder)
        return found
    if folder.is_dir() and (record.is_file() or not stage.goes_on):
        discard(folder)
    goes_on = folder.is_dir()
    last = times_of(work.recipe.output).get(stage.name)
    known = ", from where it was interrupted" if goes_on else "" if last is None else f", {last:.0f} s last time"
    work.progress.note(f"{called}: {stage.does}{known}")
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    stage.work(work, folder)
    found = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_atomically(record, json.dumps(found, indent=1) + "\n")
    seconds = time.monotonic() - started
    work.progress.note(f"{called}: done in {seconds:.0f} s")
    if not goes_on:
        times = {**times_of(work.recipe.output), stage.name: round(seconds, 1)}
        write_atomically(cache_of(work.recipe.output) / _TIMES, json.dumps(times, indent=1) + "\n")
    return found


def _recorded(record: Path) -> dict[str, str]:
    """The hash of each file that a stage has left; nothing of a record that cannot be read, so that the stage runs again."""
    try:
        found = read_json(record)
    except InputError:
        return {}
    whole = isinstance(found, dict) and all(inside(name) and isinstance(digest, str) for name, digest in found.items())
    return found if whole else {}
