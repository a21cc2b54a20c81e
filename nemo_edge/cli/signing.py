"""The commands that sign a bundle, and a list of bundles that are not to be opened any more.

Translates as `cli` does; heavy imports are inside the commands.
"""

from __future__ import annotations

__all__ = ["revoke", "sign"]

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.cli.options import Authorities, Bundle, Issuer, Json, PublicKey, SignedBy, print_result, trust_of
from nemo_edge.cli.screen import show_identity, show_line

_Key = Annotated[Path | None, typer.Option("--key", help="Private key, PEM, on P-256, P-384 or P-521.")]
_Certificate = Annotated[Path | None, typer.Option("--certificate", help="The key's certificate, PEM.")]
_Chain = Annotated[list[Path] | None, typer.Option("--chain", help="Certificates between it and the authority's; may be repeated.")]
_Sigstore = Annotated[bool, typer.Option("--sigstore", help="No key: with the identity that Sigstore knows; needs a network.")]


def sign(
    bundle: Bundle,
    key: _Key = None,
    certificate: _Certificate = None,
    chain: _Chain = None,
    sigstore: _Sigstore = False,
    as_json: Json = False,
) -> None:
    """Sign a bundle's manifest, and with it every file.

    The signature is put beside the manifest, as manifest.sig. `nemo-edge verify BUNDLE --public-key KEY` asks for it.
    """
    signer = _signer(key, certificate, chain, sigstore)
    from nemo_edge.bundle.signature import sign as run

    print_result(run(bundle, signer), as_json, _show_signed)


def revoke(
    bundles: Annotated[list[str], typer.Argument(help="Identities, or folders of bundles.")],
    path: Annotated[Path, typer.Option("--list", help="The list, a file; it is made where it is not there.")],
    key: _Key = None,
    certificate: _Certificate = None,
    chain: _Chain = None,
    sigstore: _Sigstore = False,
    reason: Annotated[str, typer.Option("--reason", help="What whoever opens one is told.")] = "",
    public_key: PublicKey = None,
    authority: Authorities = None,
    signer: SignedBy = None,
    issuer: Issuer = None,
    as_json: Json = False,
) -> None:
    """Put bundles on a signed list of what is not to be opened.

    Servers refuse them that were shipped with `--revocations`. A list that is there already must be by the same key; of another, or
    without one, say whose it is.
    """
    makers = _signer(key, certificate, chain, sigstore)
    trust = trust_of(public_key, authority, signer, issuer, None, "")
    from nemo_edge.bundle.revocations import identity_of
    from nemo_edge.bundle.revocations import revoke as run

    found = run(path, [identity_of(each) for each in bundles], makers, reason, trust)
    print_result(found, as_json, lambda revoked: show_line(f"{path}: {len(revoked.identities)} revoked, signed"))


def _signer(key: Path | None, certificate: Path | None, chain: Sequence[Path] | None, sigstore: bool) -> Any:
    from pydantic import ValidationError

    from nemo_edge.bundle.signature import Signer

    try:
        return Signer(key=key, certificate=certificate, chain=tuple(chain or ()), sigstore=sigstore)
    except ValidationError as error:
        raise typer.BadParameter(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def _show_signed(signed: Any) -> None:
    """Where the signature is, and of what."""
    show_line(f"{signed.signature}: signed")
    show_identity(signed.identity)
