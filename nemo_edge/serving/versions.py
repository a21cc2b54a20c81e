"""What one version folder of a shipped model says of itself, and how it is opened: nothing in it is opened before its hashes are right.

Runs inside the server, and knows nothing of it.
"""

from __future__ import annotations

__all__ = [
    "DESCRIPTION",
    "MODEL",
    "PIPELINE",
    "EngineVersion",
    "PipelineVersion",
    "describe_engine",
    "describe_pipeline",
    "hashes",
    "labels",
    "newest_pipeline",
    "model_name",
    "open_engine",
    "read_engine",
    "read_pipeline",
]

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from nemo_edge.backends.base import Runner
from nemo_edge.backends.triton import Signature
from nemo_edge.bundle.policies import ALWAYS, POLICIES, Policies
from nemo_edge.bundle.references import strays
from nemo_edge.bundle.signature import Trust
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.recipe import kept_recipe
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.serving.signed import SIGNED, check_origin, is_origin, policies_of
from nemo_edge.serving.updates import UPDATES
from nemo_edge.system.errors import BundleError, InputError, lacking
from nemo_edge.system.files import inside, names_in, number_of, sha256_file
from nemo_edge.system.reading import read_bytes

DESCRIPTION = "version.json"
"""The file in which a version says what it is."""

ONNX = "model.onnx/model.onnx"
"""The ONNX file of a version: in a folder of that name, since its weights are in files beside it."""

MODEL = "model.py"
"""One of our models in a version, under the name that Triton wants."""

COMPONENTS = "components"
"""The folder of a pipeline's version that has those that are no models of their own."""

_APART = (DESCRIPTION, COMPONENTS, UPDATES, f".{UPDATES}.lock", "__pycache__")
"""What a version has beside its files: its description, what says itself what it is, and what Python keeps."""

PIPELINE = "pipeline"
"""Name of the model that draws pictures; the others are the components it calls."""

ServerBackend = Literal["python", "onnxruntime", "tensorrt"]
"""What of Triton runs a component: its Python backend with our runners, or a native one."""


_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,40}")


def model_name(label: str, name: str) -> str:
    """Return what a component's model, or the pipeline's, is called in a repository that others share. Raises `InputError` for no label."""
    if label and not _LABEL.fullmatch(label):
        raise InputError(f"--name {label[:80]!r}: take letters, digits, - and _, at most 41, a letter or digit first")
    return f"{label}_{name}" if label else name


class _Version(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    bundle: str
    """Name of the bundle."""
    manifest: str
    """sha256 of the bundle's manifest."""
    label: str = ""
    """What stands before the names of its models in the repository."""
    files: dict[str, str]
    """sha256 of every other file of the version."""
    trust: Trust | None = None
    """Whose signature the bundle must have for the version to be opened; None where nobody's is asked for."""

    def check(self, folder: Path) -> None:
        """Raise `BundleError` unless what is in the folder is of the bundle that was signed, where a signature is asked for."""


class EngineVersion(_Version):
    """One component: which graph of the bundle it is, and what opens it."""

    place: str
    """Folder of the graph in the bundle, which is in the names of its engines too."""
    backend: ServerBackend
    engine: EngineSettings
    factor: int
    """Pixels of a latent."""

    def check(self, folder: Path) -> None:
        """As the class above; the settings that it is opened with are those of the bundle."""
        if self.trust is not None:
            sources = {name: (self._source(name),) for name in self.files if name != MODEL and not is_origin(name)}
            manifest, digest = check_origin(folder, self.trust, self.files, sources)
            if (self.manifest, self.engine) != (digest, kept_recipe(manifest.recipe, folder).engine):
                raise _another(folder)

    def _source(self, name: str) -> str:
        """The name of a graph or its weights in the bundle; plans have there the one that they have here."""
        path = PurePosixPath(name)
        return f"{self.place}/{path.name}" if path.parent == PurePosixPath(ONNX).parent else name


class PipelineVersion(_Version):
    """The pipeline: which version of which models it calls, and how pictures are made where a request does not say."""

    number: PositiveInt
    """Its own version, and that of the models it calls."""
    models: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")], Signature]
    """The text encoders in their order, `unet` and `vae_decoder`, as they are served."""
    sampling: SamplingSettings
    inside: bool = False
    """Whether the components are in its own folder, and no models that somebody else could call."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not {"unet", "vae_decoder"} <= {*self.models}:
            raise ValueError("a pipeline calls a unet and a vae_decoder")
        return self

    def place(self, folder: Path, name: str) -> Path:
        """The version folder of a component that it calls; `folder` is its own."""
        if self.inside:
            return folder / COMPONENTS / name
        return folder.parent.parent / model_name(self.label, name) / str(self.number)

    def check(self, folder: Path) -> None:
        """As the class above; policies and sampling are those of the bundle."""
        if self.trust is not None:
            sources = {name: tuple(_sources(name)) for name in self.files if name not in (MODEL, POLICIES)}
            sources = {name: places for name, places in sources.items() if not is_origin(name)}
            manifest, digest = check_origin(folder, self.trust, self.files, sources)
            own = policies_of(folder / SIGNED, manifest, digest)
            if (self.manifest, self.sampling) != (digest, kept_recipe(manifest.recipe, folder).sampling):
                raise _another(folder)
            if Policies.load(folder / POLICIES).offering(None) != own:
                raise _another(folder)
            if (own.neurons[ALWAYS] is None) == (VALUE_MASK in self.models["unet"].inputs):  # else a mask of nothing is fed
                raise _another(folder)


def _sources(name: str) -> Iterator[str]:
    """The names that a file of the pipeline may have in its bundle: the UNet's configuration lies with the graph that was shipped."""
    yield name
    if name.startswith("unet/"):
        yield from (name.replace("unet", place, 1) for place in UNET_FOLDERS.values())


def _another(folder: Path) -> BundleError:
    return BundleError(f"{folder} is served otherwise than the bundle that was signed: ship the bundle again; nothing was opened")


_Kind = TypeVar("_Kind", bound=_Version)


def hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of a version, by its path, but for the description."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    return {name: sha256_file(folder / name) for name in names if name != DESCRIPTION}


def read_engine(folder: Path) -> EngineVersion:
    """Read a component's version once its files are those that were shipped. Raises `BundleError` for any other."""
    return _read(folder, EngineVersion)


def read_pipeline(folder: Path, *, signed: bool = True) -> PipelineVersion:
    """Read a pipeline's version, likewise; with `signed` off where its files are not opened, and the keys of its server are elsewhere."""
    return _read(folder, PipelineVersion, signed=signed)


def newest_pipeline(repository: Path, label: str = "") -> Path:
    """Return the version folder of the pipeline that was shipped last under a label. Raises `InputError` for a repository without it."""
    place = repository / model_name(label, PIPELINE)
    numbers = [number for path in place.glob(f"*/{DESCRIPTION}") if (number := number_of(path.parent.name))]
    if not numbers:
        others = sorted(label for label in labels(repository) if label)
        known = f"; it has those of --name {', '.join(others)}" if others else ""
        command = f"nemo-edge ship BUNDLE --to {repository}" + (f" --name {label}" if label else "")
        raise InputError(f"{repository} has no {place.name} that nemo-edge shipped: make it with `{command}`{known}")
    return place / str(max(numbers))


def labels(repository: Path) -> tuple[str, ...]:
    """Return the labels of the pipelines in a repository, "" for the one without."""
    folders = sorted({path.parent.parent.name for path in repository.glob(f"*/*/{DESCRIPTION}")})
    return tuple(name.removesuffix(PIPELINE).removesuffix("_") for name in folders if name == PIPELINE or name.endswith(f"_{PIPELINE}"))


def open_engine(folder: Path) -> Runner:
    """Open the engine of a component's version. Raises `BundleError` for files that are not as they were shipped, `MissingDependency`
    for an engine that does not run here."""
    version = read_engine(folder)
    try:
        return _opened(folder, version)
    except ModuleNotFoundError as error:  # an environment that draws with other engines
        raise (lacking(error) or error) from error


def _opened(folder: Path, version: EngineVersion) -> Runner:
    flavour, engine = version.engine.flavour, version.engine
    if flavour is not None:
        from nemo_edge.backends.tensorrt import backend as tensorrt

        return tensorrt.open_engine(folder, version.place, flavour, factor=version.factor)
    from nemo_edge.backends import onnxfiles

    return onnxfiles.open_runner(folder / ONNX, engine)


def describe_pipeline(folder: Path) -> PipelineVersion:
    """Read what a pipeline's version says of itself; its files are not read. Raises `BundleError` for any other."""
    return _description(folder, PipelineVersion)


def describe_engine(folder: Path) -> EngineVersion:
    """Read what a component's version says of itself; its files, which may be large, are not read. Raises `BundleError` for any other."""
    return _description(folder, EngineVersion)


def _read(folder: Path, kind: type[_Kind], *, signed: bool = True) -> _Kind:
    version = _description(folder, kind)
    wrong = _changed(folder, version.files)
    if wrong:
        raise BundleError(f"{folder} was changed since it was shipped ({wrong}): ship the bundle again; nothing was opened")
    if signed and version.trust is not None:
        if added := _added(folder, version.files):  # a description that leaves a file out would leave it unasked
            raise BundleError(f"{folder} was changed since it was shipped ({added} was added): ship the bundle again; nothing was opened")
        version.check(folder)
    return version


def _added(folder: Path, files: Mapping[str, str]) -> str:
    """The first file in a version's folder that its description does not name; empty for none."""
    return next((name for name in names_in(folder) if name not in files and name.partition("/")[0] not in _APART), "")


def _description(folder: Path, kind: type[_Kind]) -> _Kind:
    try:
        return kind.model_validate_json(read_bytes(folder / DESCRIPTION))
    except (InputError, ValidationError) as error:
        raise BundleError(
            f"{folder} is not a version that nemo-edge shipped ({DESCRIPTION} cannot be read): ship the bundle again"
        ) from error


def _changed(folder: Path, files: Mapping[str, str]) -> str:
    """The first file that is missing or changed, or names what was not shipped, and which of these."""
    for name, digest in files.items():
        if not inside(name) or not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_file(folder / name) != digest:
            return f"{name} was changed"
    plans = (path.relative_to(folder).as_posix() for path in sorted((folder / "engines").rglob("*")))
    added = next((name for name in plans if name not in files and not (folder / name).is_dir()), None)  # what is opened is looked for there
    if added is not None:
        return f"{added} was added"
    return next(strays(folder, files, files), "")
