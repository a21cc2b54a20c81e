"""The folder a build makes: its manifest, its hashes, and how it comes to be all at once.

Knows files and hashes, nothing of models. A folder without a finished manifest is not a bundle.
"""

from __future__ import annotations

__all__ = [
    "GateResult",
    "Manifest",
    "Verification",
    "check_file",
    "check_folder",
    "check_output",
    "open_bundle",
    "publish",
    "staging",
    "verify",
]

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.errors import BundleError, InputError
from nemo_edge.files import explain, sha256_file, write_atomically

MANIFEST = "manifest.json"


class GateResult(BaseModel):
    """One gate: what was measured against what limit. Without a value there was nothing to measure, and it passes."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    name: str
    limit: float
    value: float | None
    passed: bool
    detail: str = ""


class Manifest(BaseModel):
    """Where a bundle came from, what it holds, and whether it may be shipped."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    schema_version: Literal[1] = 1
    name: str
    family: str
    key: str
    """Hash of everything the build was made from: weights, prompts, settings, nemo-edge's version."""
    variants: tuple[str, ...]
    checkpoint: dict[str, str]
    """sha256 of each file of the checkpoint."""
    prompts: dict[str, str]
    """sha256 of each prompts file, and of the statistics where they were given."""
    recipe: dict[str, Any]
    versions: dict[str, str]
    neurons_hash: str
    threshold: float
    gates: tuple[GateResult, ...]
    passed: bool
    """Whether every gate passed; a bundle that did not must not be shipped."""
    files: dict[str, str]
    """sha256 of every other file of the bundle."""


class Verification(BaseModel):
    """Whether a bundle's files are those its manifest names."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    files: int
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether no file is missing, changed or added."""
        return not self.problems


def check_output(folder: Path) -> None:
    """Raise `InputError` unless a bundle can be put at `folder`: it is absent, empty, or a bundle already."""
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not _is_bundle(folder):
        raise InputError(f"the output folder {folder} is not empty and not a bundle: give another folder, or empty it")


def _is_bundle(folder: Path) -> bool:
    try:
        return bool(open_bundle(folder))
    except BundleError:
        return False


def check_folder(folder: Path) -> None:
    """Raise `InputError` unless files can be written into `folder`, which may be absent."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"the output {folder} is a file: give the path of a folder")
    parent = next(p for p in folder.absolute().parents if p.exists())
    if not parent.is_dir():
        raise InputError(f"the output {folder} lies below {parent}, which is a file: give another path")
    for place in (parent, *([folder] if folder.is_dir() else [])):
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"the output folder {place} is read-only: give a folder you may write to")


def check_file(path: Path) -> None:
    """Raise `InputError` unless a file can be written at `path`."""
    if path.is_dir():
        raise InputError(f"the output {path} is a folder: give the path of a file")
    check_folder(path.absolute().parent)


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`; what `publish` has not moved away is deleted at the end."""
    temporary = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"  # named before it is made: a signal finds it
    try:
        try:
            temporary.mkdir(parents=True)
        except OSError as error:
            raise explain(error, folder) from error
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(staged: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the hashes of all staged files and put the folder in place, replacing a former bundle."""
    files = {name: sha256_file(staged / name) for name in _names(staged)}
    manifest = manifest.model_copy(update={"files": files})
    write_atomically(staged / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    try:
        if not folder.is_dir():
            os.replace(staged, folder)
            return manifest
        with staging(folder) as former:
            try:
                os.replace(folder, former / "bundle")
                os.replace(staged, folder)
            finally:
                if not folder.exists():
                    os.replace(former / "bundle", folder)
    except OSError as error:
        raise explain(error, folder) from error
    return manifest


def open_bundle(folder: Path) -> Manifest:
    """Read a bundle's manifest. Raises `BundleError` for a folder that is not a finished bundle."""
    path = folder / MANIFEST
    if not path.is_file():
        state = "does not exist" if not folder.exists() else "has no manifest.json and is not a finished bundle"
        raise BundleError(f"{folder} {state}: make one with `nemo-edge build`")
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{path} is not a manifest of this version of nemo-edge: build the bundle again") from error


def verify(folder: Path) -> Verification:
    """Compare every file with its hash in the manifest; external data and files that were added included."""
    manifest = open_bundle(folder)
    present = [name for name in _names(folder) if name != MANIFEST]
    problems = [f"{name} is missing" for name in manifest.files if not (folder / name).is_file()]
    problems += [f"{name} was added" for name in present if name not in manifest.files]
    whole = [name for name in present if name in manifest.files and (folder / name).is_file()]
    problems += [f"{name} was changed" for name in whole if sha256_file(folder / name) != manifest.files[name]]
    return Verification(bundle=str(folder), files=len(manifest.files), problems=tuple(problems))


def _names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() or p.is_symlink())
