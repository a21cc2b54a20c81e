"""One delivery into a model repository: whole or not at all, after a kill at any moment too.

What is to be put there is written down first. The pipeline's version is moved into its place last, and decides: where it is there, the
delivery is made; where it is not, what was put there of it is taken back, and nothing else. Knows folders and configurations, nothing of
bundles.
"""

from __future__ import annotations

__all__ = ["Delivery", "holding", "put", "staged"]

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from nemo_edge.bundle.manifest import staging
from nemo_edge.serving.modelconfig import CONFIG, read_config, recorded_version, write_config
from nemo_edge.serving.versions import PIPELINE, describe_engine, describe_pipeline
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import explain, leftovers, write_atomically
from nemo_edge.system.outputs import discard, lock, remove
from nemo_edge.system.reading import read_bytes

_OURS = "nemo-edge"
"""By this name a repository is locked, in the repository: it may be a volume of its own. Triton takes no file for a model."""
_RECORD = f".{_OURS}.json"


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,80}$")]
"""A model's, as `model_name` makes it: what is taken back is inside of the repository."""


class Delivery(BaseModel):
    """What is being put into a repository."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    number: PositiveInt
    """Of the new version of each model."""
    manifest: str
    """sha256 of the manifest of its bundle."""
    pipeline: _Name = PIPELINE
    """Name of the pipeline's model among them."""
    former: dict[_Name, str | None]
    """Name of each model → its configuration before; None where there was none."""


@contextmanager
def holding(repository: Path) -> Iterator[None]:
    """Hold a repository for one delivery; what a killed one has left is finished or taken back first.

    Raises `InputError` while another command writes to it.
    """
    made = not repository.exists()
    try:
        with lock(repository / _OURS):
            _settle(repository)
            yield
    finally:
        if made:
            with suppress(OSError):  # it holds something now
                repository.rmdir()


@contextmanager
def staged(repository: Path, delivery: Delivery) -> Iterator[dict[str, Path]]:
    """A temporary folder for each model's version, beside its place, since Triton takes no folder for a version whose name is no number.

    Afterwards the delivery is settled.
    """
    write_atomically(repository / _RECORD, delivery.model_dump_json(indent=1) + "\n")
    try:
        with ExitStack() as stack:
            yield {name: stack.enter_context(staging(repository / name / str(delivery.number))) for name in delivery.former}
    finally:
        _settle(repository)


def put(repository: Path, delivery: Delivery, folders: Mapping[str, Path], configs: Mapping[str, Any]) -> None:
    """Move every version into its place and write the configurations; the pipeline's version comes last."""
    versions = {name: repository / name / str(delivery.number) for name in folders}
    for name in [name for name in folders if name != delivery.pipeline]:
        _move(folders[name], versions[name])
    for name, config in configs.items():
        write_config(repository / name / CONFIG, config)
    _move(folders[delivery.pipeline], versions[delivery.pipeline])


def _move(folder: Path, place: Path) -> None:
    try:
        os.replace(folder, place)
    except OSError as error:
        raise explain(error, place) from error


def _settle(repository: Path) -> None:
    """Leave of the delivery that is written down all or nothing; nothing to do where none is."""
    record = repository / _RECORD
    if not record.is_file():
        return
    try:
        delivery = Delivery.model_validate_json(read_bytes(record))
    except ValidationError as error:
        raise InputError(f"{record} does not say what was being shipped: delete it, and the versions without a pipeline's") from error
    made = _is_of(repository / delivery.pipeline / str(delivery.number), delivery)
    for name, former in delivery.former.items():
        if not made:
            _take_back(repository / name, former, delivery)
        for path in (*leftovers(repository / name / str(delivery.number)), *leftovers(repository / name / CONFIG)):
            remove(path)
        if former is None:
            with suppress(OSError):  # it is not there, or holds something
                (repository / name).rmdir()
    record.unlink()


def _take_back(model: Path, former: str | None, delivery: Delivery) -> None:
    """Take a version and its configuration out of a model where they are of this delivery."""
    version, config = model / str(delivery.number), model / CONFIG
    if _is_of(version, delivery):
        discard(version)
    with suppress(InputError):  # a configuration that is not there, or nobody can read, is not ours
        found = read_config(config)
        if (recorded_version(found), found.parameters["manifest"].string_value) != (delivery.number, delivery.manifest):
            return
        if former is None:
            config.unlink()
        else:
            write_atomically(config, former)


def _is_of(version: Path, delivery: Delivery) -> bool:
    describe = describe_pipeline if version.parent.name == delivery.pipeline else describe_engine
    try:
        return describe(version).manifest == delivery.manifest
    except BundleError:
        return False
