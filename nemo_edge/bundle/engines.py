"""The engines of a bundle, and TensorRT's anywhere: what each is and whether this machine runs it, without opening one.

Imports nothing of TensorRT: what there is to know is in a plan's sidecar and in its first bytes.
"""

from __future__ import annotations

__all__ = ["Contents", "Engine", "Here", "Session", "Verified", "inspect", "inspect_engine", "verify"]

import os
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from nemo_edge.backends.tensorrt.fit import Fit, check_here
from nemo_edge.backends.tensorrt.plans import Header, PlanFile, open_plan_file, read_header
from nemo_edge.bundle import manifest as bundle
from nemo_edge.bundle.identity import PLANS
from nemo_edge.bundle.revocations import check_trusted
from nemo_edge.bundle.signature import Trust, check_expected
from nemo_edge.system.compatibility import installed
from nemo_edge.system.environment import Gpu, gpus
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.reading import read_bytes


class Here(NamedTuple):
    """What of a machine decides whether it runs a plan."""

    gpus: tuple[Gpu, ...]
    versions: Mapping[str, str]
    system: str

    @classmethod
    def look(cls) -> Here:
        """This machine."""
        return cls(gpus(), installed(), platform.system())


class Engine(BaseModel):
    """One plan, its sidecar where it has one, and whether this machine runs it."""

    model_config = ConfigDict(frozen=True)

    path: str
    header: Header | None
    """None for a file that is no plan, or not a whole one; `fit` says which."""
    sidecar: PlanFile | None
    fit: Fit


class Session(BaseModel):
    """How one of a bundle's ONNX files is run by ONNX Runtime or OpenVINO, as its file in `engines/` says."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    component: str
    backend: Literal["onnxruntime", "openvino"]
    device: str = Field(validation_alias=AliasChoices("device", "provider"))
    """The device of OpenVINO, the provider of ONNX Runtime."""
    precision: str | None = None
    """What OpenVINO computes in; ONNX Runtime does not tell."""
    version: str
    model: str
    runs: bool | None = None
    """Whether this machine has what runs it; None for a GPU's, which only trying tells."""


class Contents(bundle.Manifest):
    """A bundle's manifest, how its ONNX files are run, its engines on this machine, and what people ask of it first."""

    engines: tuple[Engine, ...]
    sessions: tuple[Session, ...] = ()
    model: str = ""
    """Where the checkpoint was, seen from this folder, or its hub id."""
    size_bytes: int = 0
    """Of all its files."""
    silenced: dict[str, int] | None = None
    """How many neurons of each value layer are silenced; None where `neurons.json` cannot be read."""
    examined: int | None = None
    """Prompts that were examined; None where nothing was, or `localization.jsonl` cannot be read."""


class Verified(bundle.Verification):
    """Whether files are those of the manifest and, where all are, what this machine makes of the engines among them."""

    engines: tuple[Engine, ...] = ()
    signed: bool = False
    """Whether it has a signature, be it anybody's."""
    trusted: bool = False
    """Whether its signature was looked at, and is by whom is trusted."""
    refused: bool = False
    """Whether its files are all as the manifest says, and only whose it is is wrong."""


def inspect(path: Path) -> Engine | Contents | None:
    """Say what an engine (or its sidecar) or a bundle is; None for anything else. Raises `InputError` for what cannot be read."""
    if path.suffix in (*PLANS, ".json") and not path.is_dir():
        return inspect_engine(path, Here.look())
    if not (path / bundle.MANIFEST).is_file():
        return None
    manifest = bundle.open_bundle(path)
    return Contents(
        **dict(manifest),
        engines=_engines(path, manifest.files),
        sessions=_sessions(path, manifest.files),
        model=_model(path, manifest.recipe),
        size_bytes=sum((path / name).stat().st_size for name in (*manifest.files, bundle.MANIFEST) if (path / name).is_file()),
        silenced=_silenced(path / "neurons.json"),
        examined=_examined(path / "localization.jsonl"),
    )


def inspect_engine(path: Path, here: Here) -> Engine:
    """Say what one engine is, by its own path or by that of its sidecar, and whether it runs `here`.

    Raises `InputError` for what is neither, `BundleError` where one of the two is damaged.
    """
    plan, sidecar = _pair(path)
    header = read_header(plan)
    described = open_plan_file(sidecar) if sidecar.is_file() else None
    return Engine(path=str(plan), header=header, sidecar=described, fit=check_here(described, header, *here))


def verify(path: str | PathLike[str], *, expect: str | None = None, trust: Trust | None = None) -> Verified:
    """Compare a bundle's files, or one engine of a bundle and its sidecar, with the manifest.

    Args:
        path: Folder of the bundle, or an engine in one.
        expect: The identity that the bundle must have, or the sha256 of its manifest.
        trust: By whom it must be signed, and what is revoked (`nemo_edge.bundle.signature.Trust`).

    Returns:
        Files that differ, and why a bundle is another's, in `problems`; `passed` where there are none, and which engines run here.

    Raises:
        BundleError: For a folder that is not a bundle.
        InputError: For an engine that is not in one, and for a key or a list of revocations that cannot be used.

    Example:
        >>> found = nemo_edge.verify("out")
        >>> found.passed, found.problems
        (True, ())
    """
    path = Path(path)
    if path.suffix not in (*PLANS, ".json") or path.is_dir():
        found = _doubted(path, bundle.verify(path), expect, trust)
        names: Iterable[str] = bundle.open_bundle(path).files if found.passed else ()
        return found.model_copy(update={"engines": _engines(path, names)})
    plan, sidecar = (p.parent.resolve() / p.name for p in _pair(path))
    folder = next((p for p in plan.parents if (p / bundle.MANIFEST).is_file()), None)
    if folder is None:
        raise InputError(f"{path} is not in a bundle, so that no manifest has its hash: see `nemo-edge inspect {path}`")
    names = [p.relative_to(folder).as_posix() for p in (plan, sidecar)]
    found = _doubted(folder, bundle.verify(folder, names), expect, trust)
    return found.model_copy(update={"engines": (inspect_engine(path, Here.look()),) if found.passed else ()})


def _doubted(folder: Path, found: bundle.Verification, expect: str | None, trust: Trust | None) -> Verified:
    """What was found of a bundle's files, and what is wrong with whose it is."""
    doubts = []
    try:
        check_expected(folder, found, expect, engines=trust is None)
        if trust is not None and check_trusted(folder, trust)[1] != found.manifest:
            doubts.append("its manifest was changed meanwhile")
    except BundleError as error:
        doubts.append(str(error))
    signed = (folder / bundle.SIGNATURE).is_file()
    problems, trusted, refused = (*doubts, *found.problems), trust is not None and not doubts, bool(doubts) and found.passed
    return Verified(**{**dict(found), "problems": problems}, signed=signed, trusted=trusted, refused=refused)


def _pair(path: Path) -> tuple[Path, Path]:
    """The paths of a plan and of its sidecar. Raises `InputError` for a sidecar without a plan."""
    if path.suffix != ".json":
        return path, path.with_suffix(".json")
    open_plan_file(path)
    for plan in map(path.with_suffix, PLANS):
        if plan.is_file():
            return plan, path
    raise InputError(f"{path.with_suffix('.plan')} does not exist, which {path.name} describes: fetch it, or build the engine again")


def _engines(folder: Path, names: Iterable[str]) -> tuple[Engine, ...]:
    """The engines among the files of a bundle; one that cannot be read does not hide the others."""
    plans = [name for name in names if name.endswith(PLANS)]
    here = Here.look() if plans else None
    return tuple(_engine(folder / name, here) for name in plans) if here else ()


def _sessions(folder: Path, names: Iterable[str]) -> tuple[Session, ...]:
    """What the files in `engines/` say that describe no plan; one that says nothing of the kind is left to `verify`."""
    found, versions = [], installed()
    for name in names:
        if name.startswith("engines/") and name.endswith(".json"):
            with suppress(InputError, ValidationError):
                session = Session.model_validate_json(read_bytes(folder / name))
                here = any(package in versions for package in (session.backend, f"{session.backend}-gpu"))
                runs = None if here and session.device != "cpu" else here
                found.append(session.model_copy(update={"runs": runs}))
    return tuple(found)


def _model(folder: Path, recipe: Mapping[str, Any]) -> str:
    """What a bundle was made of: the way to a folder or a file is kept as it goes from the bundle."""
    source = recipe.get("checkpoint")
    path = str(source.get("path", "")) if isinstance(source, dict) else ""
    return os.path.normpath(folder / path) if path.startswith((".", "/")) else path


def _silenced(path: Path) -> dict[str, int] | None:
    from nemo_edge.model.neurons import NeuronSet  # with numpy, which an engine alone does not need

    try:
        neurons = NeuronSet.load(path)
    except InputError:
        return None
    return {layer.name: len(chosen) for layer, chosen in neurons.items()}


def _examined(path: Path) -> int | None:
    """The lines of what was found: one a prompt."""
    with suppress(InputError):
        return read_bytes(path).count(b"\n") if path.is_file() else None
    return None


def _engine(path: Path, here: Here) -> Engine:
    try:
        return inspect_engine(path, here)
    except InputError as error:
        return Engine(path=str(path), header=None, sidecar=None, fit=Fit(runs=False, reason=str(error)))
