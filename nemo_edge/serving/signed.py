"""What a version that is served has of the bundle it is of, so that it can be asked whose it is: the manifest, its signature, and what
its policies are of.

Knows bundles and signatures; nothing of what opens a version.
"""

from __future__ import annotations

__all__ = [
    "SIGNED",
    "check_origin",
    "copy_origin",
    "is_origin",
    "masked_graph",
    "origin_of",
    "policies_of",
    "read_meant",
    "read_origin_policies",
]

import shutil
from collections.abc import Collection, Mapping
from hashlib import sha256
from pathlib import Path

from nemo_edge.bundle.manifest import MANIFEST, SIGNATURE, Manifest, check_shippable, verify
from nemo_edge.bundle.policies import POLICIES, Policies, baked_policies, read_policies
from nemo_edge.bundle.revocations import check_trusted
from nemo_edge.bundle.signature import Trust, check_expected
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.system.errors import BundleError
from nemo_edge.system.files import explain, sha256_file
from nemo_edge.system.reading import read_bytes

SIGNED = "signed"
"""The folder of a version that has them."""

_NEURONS = "neurons.json"


def read_meant(bundle: Path, expect: str | None, trust: Trust | None, names: Collection[str] | None = None) -> tuple[Manifest, str]:
    """Return the manifest of a bundle and its sha256: one that may be shipped, is expected and trusted, and whose files are as it says.

    With `names` these files alone are read. Raises `BundleError` for any other, and for one that was built again meanwhile: all that was
    asked of it was asked of one manifest.
    """
    manifest, content = check_shippable(bundle), read_bytes(bundle / MANIFEST)
    digest = sha256(content).hexdigest()
    check_expected(bundle, verify(bundle, ()), expect, engines=names is None and trust is None)
    trusted = digest if trust is None else check_trusted(bundle, trust)[1]
    found = verify(bundle, names)
    if found.problems:
        raise BundleError(f"{bundle} was changed since it was built ({found.problems[0]}): build it again; nothing was shipped")
    if {trusted, found.manifest} != {digest} or Manifest.model_validate_json(content) != manifest:
        raise BundleError(f"{bundle} was built again meanwhile: run the same command once more; nothing was shipped")
    return manifest, digest


def is_origin(name: str) -> bool:
    """Whether a file of a version, by its name there, is one of these and not what is served."""
    return name.startswith(f"{SIGNED}/")


def origin_of(files: Collection[str], *, policies: bool) -> tuple[str, ...]:
    """Return what of a bundle of these files goes along: with its `policies` what they are of, too."""
    return (MANIFEST, SIGNATURE, *(name for name in (_NEURONS, POLICIES) if policies and name in files))


def copy_origin(bundle: Path, folder: Path, names: Collection[str]) -> dict[str, str]:
    """Copy these files of a bundle into a folder, which is made; return their hashes, by the folder's name and theirs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copyfile(bundle / name, folder / name)
    except OSError as error:
        raise explain(error, folder) from error
    return {f"{folder.name}/{name}": sha256_file(folder / name) for name in names}


def check_origin(folder: Path, trust: Trust, files: Mapping[str, str], sources: Mapping[str, tuple[str, ...]]) -> tuple[Manifest, str]:
    """Return the manifest that a version is of, and its sha256, once it is trusted and has each of these files, by their hashes.

    `sources` are the names that a file of the version may have in the bundle. Raises `BundleError` for any other.
    """
    manifest, digest = check_trusted(folder / SIGNED, trust)
    for name, places in sources.items():
        if files[name] not in [manifest.files.get(place) for place in places]:
            raise BundleError(f"{folder}: {name} is not of the bundle that was signed: ship the bundle again; nothing was opened")
    return manifest, digest


def policies_of(folder: Path, manifest: Manifest, digest: str) -> Policies:
    """Return the policies of the bundle of a trusted manifest of this sha256, by the files of it in a folder; without any its neurons are
    baked."""
    if not (folder / _NEURONS).is_file():
        return baked_policies(digest)
    for name in (_NEURONS, POLICIES):
        if (sha256_file(folder / name) if (folder / name).is_file() else None) != manifest.files.get(name):
            raise BundleError(f"{folder / name} is not of the bundle that was signed: ship the bundle again; nothing was opened")
    return read_policies(folder, manifest.files, digest)


def masked_graph(manifest: Manifest) -> dict[str, str]:
    """Return the hashes of a bundle's masked UNet, whatever its neurons are: by them its policies are told from another model's."""
    return {name: digest for name, digest in manifest.files.items() if name.startswith(f"{UNET_FOLDERS['masked']}/model.onnx")}


def read_origin_policies(folder: Path, trust: Trust, graph: Mapping[str, str] | None) -> Policies:
    """Return the policies of the bundle whose files are in a folder, once it is trusted and has this masked UNet.

    Raises `BundleError` for any other.
    """
    manifest, digest = check_trusted(folder, trust)
    if masked_graph(manifest) != graph:
        raise BundleError(f"{folder} is of a bundle with another masked engine: ship that bundle whole, to a folder of its own")
    return policies_of(folder, manifest, digest)
