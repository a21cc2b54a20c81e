"""The folder a build makes: its manifest, its hashes, and how it comes to be all at once.

Knows files and hashes, nothing of models. A folder without a finished manifest is not a bundle.
"""

from __future__ import annotations

__all__ = [
    "GateResult",
    "MEASURED",
    "Manifest",
    "Verification",
    "amend",
    "check_measurable",
    "check_output",
    "check_shippable",
    "copy_tree",
    "holding",
    "measured_no_more",
    "open_bundle",
    "open_verified",
    "publish",
    "staging",
    "unjudged",
    "verify",
]

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nemo_edge.bundle.display import Displayed
from nemo_edge.bundle.references import strays
from nemo_edge.system.environment import Machine
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import check_folder, explain, followed, inside, names_in, sha256_file, temporary, write_atomically
from nemo_edge.system.outputs import former_of, lock, put_back
from nemo_edge.system.reading import read_bytes, read_json

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
"""The manifest's signature beside it, the one file without a hash in it; a bundle that is changed loses it."""
SCHEMA: Literal[3] = 3
"""3: judged by the published score, and by gates that count every copy; what was judged before is built again."""
MEASURED = "measured"
"""Name of the one gate of a bundle whose neurons or engines are others than those that were measured; it fails."""
COPIES = "replication"
"""Name of the gates, one a variant, that ask for copies of training pictures."""
_READERS = 4
"""Threads that hash a bundle's files: hashing is slower than reading."""
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


class GateResult(BaseModel):
    """One gate: what was measured against what limit. Without a value there was nothing to measure, and it does not fail."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    limit: float
    value: float | None
    passed: bool
    """Whether it did not fail."""
    detail: str = ""
    gap: str = ""
    """What too little is known for, so that no verdict may say that all was measured; empty where enough is."""

    @property
    def unmeasured(self) -> bool:
        """Whether it neither failed nor may be said to have passed."""
        return self.value is None or (self.passed and bool(self.gap))


class Manifest(Displayed):
    """Where a bundle came from, what it holds, and whether it may be shipped."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[3] = SCHEMA
    name: str
    family: str
    key: str
    """Hash of everything the build was made from: weights, prompts, settings, nemo-edge's version."""
    variants: tuple[str, ...]
    checkpoint: dict[str, str]
    """sha256 of each file of the checkpoint."""
    hardened: dict[str, str] | None = None
    """The same of the checkpoint that was made of it by hardening, and whose weights the engines have; None without."""
    random_weights: str | None = None
    """The architecture, where the weights are random: such a bundle is for measuring, and is never shipped."""
    prompts: dict[str, str]
    """sha256 of each prompts file, and of the statistics where they were given."""
    recipe: dict[str, Any]
    recipe_file: str = ""
    """Name of the file that the recipe was read from; empty for a recipe from code, and where it was not kept."""
    versions: dict[str, str]
    machine: Machine
    """Where it was built, and measured."""
    created: str
    """When the verdict was made, ISO 8601."""
    neurons_hash: str
    threshold: float | None
    """τ; None where nothing was measured."""
    gates: tuple[GateResult, ...]
    passed: bool
    """Whether every gate passed; a bundle that did not must not be shipped."""
    files: dict[str, str]
    """sha256 of every other file of the bundle."""

    @property
    def measured(self) -> bool:
        """Whether what was measured was measured with the bundle's own neurons and engines."""
        return all(gate.name != MEASURED for gate in self.gates)

    @property
    def flaw(self) -> str:
        """Why it must not be shipped, as the rest of a sentence on it; empty for one that may be."""
        return "" if self.passed else "carries random weights" if self.random_weights is not None else "failed a gate"


class Verification(BaseModel):
    """Whether a bundle's files are those its manifest names."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    files: int
    problems: tuple[str, ...]
    random_weights: str | None = None
    """The architecture, where the bundle says that its weights are random."""
    identity: str = ""
    """sha256 of the manifest, and so of what it says of every file: which bundle this is."""

    @property
    def passed(self) -> bool:
        """Whether no file is missing, changed or added."""
        return not self.problems


def measured_no_more(changed: str) -> GateResult:
    """The one gate of a bundle of which something was changed since it was measured; `changed` says so, as the beginning of a sentence."""
    why = f"{changed} since the bundle was measured; measure it again: nemo-edge rebake BUNDLE --neurons BUNDLE/neurons.json --measure"
    return GateResult(name=MEASURED, limit=0.0, value=1.0, passed=False, detail=why)


def unjudged(gates: Sequence[GateResult]) -> str:
    """Say why gates that all hold do not mean that no training picture is given back; empty where they do, for what was drawn."""
    asked = [gate for gate in gates if gate.name.partition(".")[0] == COPIES]
    if not asked:
        return f"Copies were not judged: the gate {COPIES} is off"
    gap = next(filter(None, (gate.gap or (gate.detail if gate.value is None else "") for gate in asked)), "")
    return f"Copies were not measured: {gap}" if gap else ""


def check_output(folder: Path) -> None:
    """Raise `InputError` unless a bundle can be put at `folder`: it is absent, empty, or a bundle already."""
    check_folder(folder)
    if folder.is_dir() and any(folder.iterdir()) and not _is_bundle(folder):
        raise InputError(f"the output folder {folder} is not empty and not a bundle: give another folder, or empty it")


def _is_bundle(folder: Path) -> bool:
    """Whether a folder is a bundle, be it of a former schema, which is to be built again."""
    try:
        content = read_json(folder / MANIFEST)
        return isinstance(content["schema_version"], int) and {"files", "neurons_hash"} <= content.keys()
    except (InputError, TypeError, KeyError, AttributeError):
        return False


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`; what `publish` has not moved away is deleted at the end, or by the next `lock` of `folder`."""
    staged = temporary(folder)  # named before it is made: a signal finds it
    try:
        try:
            staged.mkdir(parents=True)
        except OSError as error:
            raise explain(error, folder) from error
        yield staged
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def publish(staged: Path, folder: Path, manifest: Manifest, known: Mapping[str, str] | None = None) -> Manifest:
    """Write the manifest with the hashes of all staged files and put the folder in place, replacing a former bundle.

    `known` are hashes of files that need not be read again. Where two folders cannot be exchanged, the former bundle is aside for a
    moment; after a kill in that moment whoever looks for it next puts it back.
    """
    hashes = known or {}
    files = {name: hashes.get(name) or sha256_file(staged / name) for name in names_in(staged)}
    manifest = manifest.model_copy(update={"files": files})
    write_atomically(staged / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
    folder = followed(folder)
    try:
        if not folder.is_dir():
            os.replace(staged, folder)
        elif not _exchange(staged, folder):  # else the former bundle is where the staged one was, and goes with it
            _replace(staged, folder)
    except OSError as error:
        raise explain(error, folder) from error
    return manifest


def _replace(staged: Path, folder: Path) -> None:
    """Put a folder in the place of another in two steps; an error takes the first one back, `lock` does after a kill."""
    former = former_of(folder)
    try:
        os.replace(folder, former)
        os.replace(staged, folder)
    finally:
        if not folder.exists():
            os.replace(former, folder)
    shutil.rmtree(former, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Give two folders each other's name in one step, so that there is no moment without a bundle; False where nobody can."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, TypeError, AttributeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def open_bundle(folder: str | PathLike[str]) -> Manifest:
    """Read a bundle's manifest. No other file is read (`verify` does).

    Args:
        folder: Where the bundle is.

    Returns:
        What it was made from, what it holds, and its verdict: one line in a session, a table of the gates in a notebook.

    Raises:
        BundleError: For a folder that is not a finished bundle.

    Example:
        >>> manifest = nemo_edge.open_bundle("out")
        >>> manifest.variants, manifest.passed
        (('baked', 'masked'), True)
    """
    folder = Path(folder)
    put_back(folder)
    path = folder / MANIFEST
    if not path.is_file():
        state = "does not exist" if not folder.exists() else "has no manifest.json and is not a finished bundle"
        raise BundleError(f"{folder} {state}: make one with `nemo-edge build`")
    try:
        manifest = Manifest.model_validate_json(read_bytes(path))
    except (InputError, ValidationError) as error:
        raise BundleError(_unreadable(path)) from error
    outside = next((name for name in manifest.files if not inside(name)), None)
    if outside is not None:
        raise BundleError(f"{path} names {outside!r}, which is no file below {folder}: build the bundle again")
    return manifest


def _unreadable(path: Path) -> str:
    """Why a manifest is not one, by the schema it names."""
    try:
        schema = read_json(path).get("schema_version")
    except (InputError, AttributeError):
        return f"{path} is not a manifest: build the bundle again"
    if schema == SCHEMA:
        return f"{path} is not a manifest of schema {SCHEMA}, as it says: build the bundle again"
    return f"{path} is of schema {schema}, and this nemo-edge reads schema {SCHEMA}: build the bundle again with this version"


def open_verified(folder: Path) -> Manifest:
    """Read a bundle's manifest once every file is as it says; needed before an engine is opened, which runs native code.

    Raises `BundleError` for a bundle that was changed.
    """
    problems = verify(folder).problems
    if problems:
        raise BundleError(f"{folder} was changed since it was built ({problems[0]}): build it again; no engine was opened")
    return open_bundle(folder)


def check_measurable(folder: Path, manifest: Manifest) -> None:
    """Raise `BundleError` for a bundle of random weights: it has no memories, so that nothing was found or measured on it."""
    if manifest.random_weights is not None:
        weights = manifest.random_weights
        raise BundleError(f"{folder} carries random weights ({weights}): nothing was measured on it; build it from a checkpoint")


def check_shippable(folder: Path) -> Manifest:
    """Read the manifest of a bundle that may be shipped, by what it says of itself; no other file is read.

    Raises `BundleError` for random weights and for a failed gate.
    """
    manifest = open_bundle(folder)
    if manifest.random_weights is not None:
        raise BundleError(f"{folder} carries random weights ({manifest.random_weights}): it is for measuring and is not shipped")
    if not manifest.passed:
        failed = ", ".join(gate.name for gate in manifest.gates if not gate.passed)
        raise BundleError(f"{folder} failed a gate ({failed or 'none was judged'}) and is not shipped: see its report/index.html")
    return manifest


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a finished bundle that is to be changed, from before the work until it is changed.

    Raises `BundleError` for a folder that is none, `InputError` where it cannot be written, and while another command writes to it.
    """
    open_bundle(folder)
    check_output(folder)
    with lock(folder):
        yield


def amend(folder: Path, manifest: Manifest, write: Callable[[Path], Mapping[str, str] | None]) -> Manifest:
    """Add files to a bundle or replace some, all at once: `write` gets a folder that holds the bundle's files.

    It must not change a file in place, and the bundle is locked meanwhile. What it leaves alone keeps the hash it has in `manifest`; of
    what it writes it may return hashes that it knows. Raises `BundleError` when the bundle is no longer the one that the manifest is of,
    or holds other files.
    """
    with lock(folder), staging(folder) as staged:
        _check_names(folder, manifest)
        copy_tree(folder, staged, leave=(MANIFEST, SIGNATURE), link=True)
        before = {name: _mark(staged / name) for name in manifest.files}
        known = write(staged) or {}
        kept = {n: h for n, h in manifest.files.items() if (staged / n).is_file() and _mark(staged / n) == before[n]}
        return publish(staged, folder, manifest, {**kept, **known})


def _check_names(folder: Path, manifest: Manifest) -> None:
    """Raise `BundleError` unless a bundle is the one that the manifest is of, and holds its files and no other."""
    if open_bundle(folder).files != manifest.files:
        raise BundleError(f"{folder} was built again meanwhile: run the same command once more")
    names = {*names_in(folder)} - {MANIFEST, SIGNATURE}
    other = [*(f"{n} was added" for n in sorted(names - {*manifest.files})), *(f"{n} is missing" for n in {*manifest.files} - names)]
    if other:
        raise BundleError(f"{folder} was changed since it was built ({other[0]}): build it again; nothing was written")


def copy_tree(source: Path, target: Path, leave: Sequence[str] = (), *, link: bool = False) -> None:
    """Copy the files of a folder into another; with `link` as hard links where the file system has them.

    A bundle's files have no second name, since onnx refuses to read external data that has.
    """
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if not path.is_file() or name.parts[0] in leave:
            continue
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        try:
            if not link:
                shutil.copy2(path, place)
                continue
            os.link(path, place)
        except OSError as error:
            if not link or error.errno == errno.ENOSPC:
                raise explain(error, place) from error
            shutil.copy2(path, place)


def verify(folder: Path, names: Collection[str] | None = None) -> Verification:
    """Compare every file with its hash in the manifest; external data and files that were added included.

    What an engine or a graph names has to be among the files, and none of them a link: a hash says nothing of what lies elsewhere.
    With `names`, only those files of the bundle are read.
    """
    manifest = open_bundle(folder)
    hashes = {name: digest for name, digest in manifest.files.items() if names is None or name in names}
    present = names_in(folder) if names is None else [name for name in names if (folder / name).is_file()]
    problems = [f"{name} is missing" for name in hashes if not (folder / name).is_file()]
    problems += [f"{name} was added" for name in present if name not in (*hashes, MANIFEST, SIGNATURE)]
    whole = [name for name in hashes if (folder / name).is_file()]
    with ThreadPoolExecutor(_READERS) as pool:
        found = pool.map(lambda name: sha256_file(folder / name), whole)
        problems += [f"{name} was changed" for name, digest in zip(whole, found, strict=True) if digest != hashes[name]]
    problems += strays(folder, [*whole, *(name for name in present if name == SIGNATURE)], manifest.files)
    content, weights = read_bytes(folder / MANIFEST), manifest.random_weights
    if Manifest.model_validate_json(content).files != manifest.files:  # the identity is that of what the files were compared with
        raise BundleError(f"{folder} was built again meanwhile: run the same command once more")
    identity = sha256(content).hexdigest()
    return Verification(bundle=str(folder), files=len(hashes), problems=tuple(problems), random_weights=weights, identity=identity)


def _mark(path: Path) -> tuple[int, int, int]:
    """What tells a file from one that was written in its place, without reading it: copies and links have the times of the original."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
