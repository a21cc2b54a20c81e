"""A bundle's neurons for a repository that has its engines already: policies go there, and no engine.

A server that runs silences the new neurons from its next request on. Imports nothing heavy, since a leak waits for it.
"""

from __future__ import annotations

__all__ = ["ShippedMasks", "ship_masks"]

from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.manifest import Manifest
from nemo_edge.bundle.policies import ALWAYS, POLICIES, read_policies
from nemo_edge.bundle.signature import Trust
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.serving.signed import copy_origin, is_origin, origin_of, read_meant
from nemo_edge.serving.updates import put_policies
from nemo_edge.serving.versions import MODEL, describe_engine, newest_pipeline, read_pipeline
from nemo_edge.system.errors import BundleError, InputError

_READ = ("neurons.json", POLICIES)
"""What is read of a bundle, as far as it has it: one of an older version has no policies of its own."""


class ShippedMasks(BaseModel):
    """What was put beside the newest pipeline of a repository."""

    model_config = ConfigDict(frozen=True)

    repository: str
    bundle: str
    version: int
    """Version of the pipeline."""
    update: int
    """Number of the update among those of that version."""
    policies: str
    """Version of the policies, which the server's metrics and log name."""
    neurons: int
    """Neurons that the bundle silences."""


def ship_masks(bundle: Path, repository: Path, *, name: str = "", expect: str | None = None, trust: Trust | None = None) -> ShippedMasks:
    """Put the policies of a bundle into force in the newest pipeline of that name in a repository, whose masked engine is the bundle's.

    Of the bundle only the neurons and the policies are compared with their hashes. With `trust` it must be signed by whom is trusted; that
    is for a repository that asks for signatures, which takes no other. Raises `BundleError` for a bundle that must not be shipped or was
    changed, `InputError` for a repository without its masked engine, and for one that asks otherwise.
    """
    manifest, digest = read_meant(bundle, expect, trust, _READ)
    if _READ[0] not in manifest.files:
        raise BundleError(f"{bundle} was changed since it was built ({_READ[0]} is missing): build it again; nothing was shipped")
    folder = newest_pipeline(repository, name)
    pipeline = read_pipeline(folder, signed=False)
    if pipeline.trust is not None and trust is None:
        raise InputError(f"{repository} asks for signatures: say whose the bundle has, with --public-key or --authority")
    if pipeline.trust is None and trust is not None:
        raise InputError(
            f"{repository} asks for no signature, and so not for that of new neurons: ship the bundle whole, to another folder"
        )
    _check_engine(pipeline.place(folder, "unet"), bundle, manifest)
    policies = read_policies(bundle, manifest.files, digest)
    origin = partial(copy_origin, bundle, names=origin_of(manifest.files, policies=True))
    update = put_policies(folder, policies, None if pipeline.trust is None else origin)
    return ShippedMasks(
        repository=str(repository),
        bundle=str(bundle),
        version=pipeline.number,
        update=update,
        policies=policies.version,
        neurons=len(policies.neurons[ALWAYS] or ()),
    )


def _check_engine(version: Path, bundle: Path, manifest: Manifest) -> None:
    """Raise `InputError` unless a served UNet is the bundle's masked one, file by file."""
    served = describe_engine(version)
    if served.place != UNET_FOLDERS["masked"]:
        raise InputError(f"{version} is baked, and takes no mask: ship the bundle without --masks-only")
    shipped = {name: digest for name, digest in served.files.items() if name != MODEL and not is_origin(name)}
    if not {*shipped.values()} <= {*manifest.files.values()}:
        raise InputError(f"{version} is not the masked engine of {bundle}: ship the bundle without --masks-only")
