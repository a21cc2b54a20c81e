"""Bundles that are not to be opened any more, although they are signed: a signed list of their identities, which whoever opens one reads.

A list that is missing, changed or another's revokes all: nothing is opened without it. Knows identities and signatures.
"""

from __future__ import annotations

__all__ = ["Revocation", "Revocations", "check_not_revoked", "check_trusted", "identity_of", "revoke"]

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemo_edge.bundle.manifest import Manifest, open_bundle
from nemo_edge.bundle.signature import Signer, Trust, check_signed_bytes, public_key_of, sign_bytes, signed_manifest
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import check_file, write_atomically
from nemo_edge.system.outputs import lock
from nemo_edge.system.reading import check_letters, read_bytes

_NAME = "revocations.json"
"""What is signed is a file of this name, whatever the list's own is, so that no signature of a manifest is one of a list."""
_IDENTITY = re.compile(r"[0-9a-f]{64}")


class Revocation(BaseModel):
    """Since when and why a bundle is not to be opened."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: str
    """ISO 8601."""
    reason: str = ""


class Revocations(BaseModel):
    """The list, with its signature: one file, so that it is never without."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    written: str
    """ISO 8601."""
    identities: dict[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")], Revocation]
    """By a bundle's identity; in a list from before there were any, by the sha256 of its manifest."""
    signature: str = ""
    """Of the rest: a Sigstore bundle in JSON."""

    @property
    def content(self) -> bytes:
        """What is signed."""
        return self.model_copy(update={"signature": ""}).model_dump_json(indent=1).encode()

    @classmethod
    def load(cls, path: Path, trust: Trust) -> Revocations:
        """Read a list that is signed by whom is trusted. Raises `InputError` for any other file."""
        content = read_bytes(path, "list of revocations", remedy="put it there, signed, as `nemo-edge revoke` writes it")
        try:
            found = cls.model_validate_json(content)
        except ValidationError as error:
            raise InputError(f"{path} is no list of revocations: get it again, or write one with `nemo-edge revoke`") from error
        check_signed_bytes(found.content, _NAME, found.signature.encode(), trust, f"the list of revocations {path}")
        return found


def revoke(path: Path, identities: Sequence[str], signer: Signer, reason: str = "", trust: Trust | None = None) -> Revocations:
    """Add bundles to a list, which is made where it is not there, and sign it; return it.

    `trust` says whose list there may be already: of whom signs with a key without a certificate it is known. Raises `InputError` for a
    list that is not theirs, for what is no identity, and for a key that cannot be used.
    """
    check_file(path)
    check_letters(reason, "--reason")
    wrong = next((each for each in identities if not _IDENTITY.fullmatch(each.lower())), None)
    if wrong is not None:
        raise InputError(f"{wrong[:80]!r} is no identity: give 64 hexadecimal digits, as `nemo-edge verify` prints them")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with lock(path), TemporaryDirectory(prefix="nemo-edge-") as scratch:
        known: dict[str, Revocation] = {}
        if path.exists():
            known = Revocations.load(path, trust or _own(signer, Path(scratch))).identities
        added = {identity: Revocation(since=now, reason=reason) for identity in map(str.lower, identities) if identity not in known}
        found = Revocations(written=now, identities={**known, **added})
        found = found.model_copy(update={"signature": sign_bytes(found.content, _NAME, signer).decode()})
        write_atomically(path, found.model_dump_json(indent=1) + "\n")
    return found


def identity_of(given: str) -> str:
    """Return the identity that is given, or that of the bundle whose folder is. Raises `InputError` for anything else."""
    if not Path(given).is_dir():
        if _IDENTITY.fullmatch(given.lower()):
            return given.lower()
        raise InputError(f"{given[:80]!r} is neither an identity, 64 hexadecimal digits as `nemo-edge verify` prints them, nor a bundle")
    return open_bundle(given).identity


def check_not_revoked(identity: str, trust: Trust, what: str, manifest: str = "") -> None:
    """Raise `BundleError`, which calls it `what`, for a bundle that the list revokes, by its identity or by the sha256 of its `manifest`.

    Raises `InputError` for a list that cannot be used.
    """
    listed = Revocations.load(trust.revocations, trust).identities if trust.revocations is not None else {}
    found = listed.get(identity) or listed.get(manifest)
    if found is not None:
        reason = f" ({found.reason})" if found.reason else ""
        raise BundleError(f"{what} was revoked on {found.since}{reason}: ship another bundle; nothing was opened")


def check_trusted(folder: Path, trust: Trust) -> tuple[Manifest, str]:
    """Return the manifest in a folder, and its sha256, once it is signed by whom is trusted and not revoked. Raises `BundleError`."""
    manifest, digest = signed_manifest(folder, trust)
    check_not_revoked(manifest.identity, trust, str(folder), digest)
    return manifest, digest


def _own(signer: Signer, scratch: Path) -> Trust:
    """Who takes what this signer signs."""
    if signer.key is None or signer.certificate is not None:
        raise InputError("the list is there already: say who signed it, with --public-key, --authority, or --signer and --issuer")
    place = scratch / "public.pem"
    place.write_bytes(public_key_of(signer.key))
    return Trust(public_key=place)
