"""A bundle's neurons for a repository that has its engines already: policies go there, and no engine.

A server that runs silences the new neurons from its next request on. Imports nothing heavy, since a leak waits for it.
"""

from __future__ import annotations

__all__ = ["ShippedMasks", "ship_masks"]

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.manifest import MANIFEST, Manifest, check_shippable, verify
from nemo_edge.bundle.policies import ALWAYS, POLICIES, read_policies
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.serving.updates import put_policies
from nemo_edge.serving.versions import MODEL, describe_engine, newest_pipeline, read_pipeline
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_file

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


def ship_masks(bundle: Path, repository: Path) -> ShippedMasks:
    """Put the policies of a bundle into force in the newest pipeline of a repository whose masked engine is the bundle's.

    Of the bundle only the neurons and the policies are compared with their hashes. Raises `BundleError` for a bundle that must not be
    shipped or was changed, `InputError` for a repository without its masked engine.
    """
    manifest = check_shippable(bundle)
    problems = verify(bundle, _READ).problems
    missing = [f"{name} is missing" for name in _READ[:1] if name not in manifest.files]
    if problems or missing:
        raise BundleError(f"{bundle} was changed since it was built ({[*problems, *missing][0]}): build it again; nothing was shipped")
    folder = newest_pipeline(repository)
    pipeline = read_pipeline(folder)
    _check_engine(repository / "unet" / str(pipeline.number), bundle, manifest)
    policies = read_policies(bundle, manifest.files, sha256_file(bundle / MANIFEST))
    update = put_policies(folder, policies)
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
    if not {digest for name, digest in served.files.items() if name != MODEL} <= {*manifest.files.values()}:
        raise InputError(f"{version} is not the masked engine of {bundle}: ship the bundle without --masks-only")
