"""Runs the stages whose results are not there yet, and puts all results into a bundle.

Results are kept in `.<bundle>.build/<stage>-<key>/` beside the bundle, with the hash of each file. Knows folders and hashes; what a
stage does is its own business.
"""

from __future__ import annotations

__all__ = ["cache_of", "is_kept", "lock", "run_stages", "times_of"]

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from nemo_edge.bundle.manifest import copy_tree
from nemo_edge.release._stages import Stage, Work, stages_of
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import inside, sha256_file, write_atomically
from nemo_edge.system.reading import read_json

_RECORD = "stage.json"
_TIMES = "times.json"


def cache_of(output: Path) -> Path:
    """Where a build of the bundle `output` keeps the results of its stages."""
    return output.parent / f".{output.name}.build"


def is_kept(output: Path, stage: str, key: str) -> bool:
    """Whether a stage has left its results under this key; whether they are whole is not asked."""
    return (_folder(output, stage, key) / _RECORD).is_file()


@contextmanager
def lock(output: Path) -> Iterator[None]:
    """Hold the build's cache for this process. Raises `InputError` while another build of the same bundle runs."""
    folder = cache_of(output)
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / "lock")
    try:
        held.acquire(timeout=0)
    except Timeout as error:
        raise InputError(f"another build of {output} is running: wait for it, or give another output") from error
    try:
        yield
    finally:
        held.release()


def times_of(output: Path) -> dict[str, float]:
    """Return the seconds that each stage of a bundle's build took when it last ran from its beginning to its end."""
    try:
        found: dict[str, float] = json.loads((cache_of(output) / _TIMES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def run_stages(work: Work, keys: Mapping[str, str]) -> dict[str, str]:
    """Fill `work.bundle`, stage by stage; return the hashes of the files in it that are known already.

    What a stage left before is taken where its key is the same and its files are as it left them.
    """
    hashes: dict[str, str] = {}
    stages = stages_of(work.recipe)
    kept = [stage.name for stage in stages if stage.key is not None]
    for stage in stages:
        if stage.key is None:
            stage.work(work, work.bundle)
            continue
        folder = _folder(work.recipe.output, stage.name, keys[stage.name])
        found = _results(stage, work, folder, f"stage {kept.index(stage.name) + 1} of {len(kept)}, {stage.name}")
        work.results[stage.name] = folder
        private = (_RECORD, *stage.private)
        copy_tree(folder, work.bundle, leave=private)
        hashes |= {name: digest for name, digest in found.items() if Path(name).parts[0] not in private}
    return hashes


def _folder(output: Path, stage: str, key: str) -> Path:
    return cache_of(output) / f"{stage}-{key[:12]}"


def _results(stage: Stage, work: Work, folder: Path, called: str) -> dict[str, str]:
    """The hash of each file of a stage's results in `folder`, which are made now unless they are there as they were left."""
    record = folder / _RECORD
    if record.is_file():
        found = _recorded(record)
        if found and all((folder / name).is_file() and sha256_file(folder / name) == digest for name, digest in found.items()):
            work.progress.note(f"{called}: nothing has changed")
            return found
    if folder.is_dir() and (record.is_file() or not stage.goes_on):
        shutil.rmtree(folder)
    goes_on = folder.is_dir()
    work.progress.note(f"{called}: {stage.does}{', from where it was interrupted' if goes_on else ''}")
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    stage.work(work, folder)
    found = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_atomically(record, json.dumps(found, indent=1) + "\n")
    if not goes_on:
        times = {**times_of(work.recipe.output), stage.name: round(time.monotonic() - started, 1)}
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
