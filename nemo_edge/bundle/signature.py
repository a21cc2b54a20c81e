"""Who made a bundle: the signature of its manifest, which has the hash of every other file. OpenSSF's model-signing makes and checks it.

A hash says that a folder is as its manifest says, and whoever changes a file can write a manifest that says so. A signature says whose
manifest it is. It is that of a folder with one file of that name, so that model-signing's own command takes it, too. Knows files, keys
and certificates; nothing of what a bundle is for.
"""

from __future__ import annotations

__all__ = ["Signed", "Signer", "Trust", "check_expected", "check_signed_bytes", "public_key_of", "sign", "sign_bytes", "signed_manifest"]

import base64
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nemo_edge.bundle.manifest import MANIFEST, SIGNATURE, Manifest, Verification, holding, verify
from nemo_edge.system.errors import BundleError, InputError, MissingDependency, first_line
from nemo_edge.system.files import explain, temporary
from nemo_edge.system.reading import check_letters, check_regular, read_bytes

PASSWORD = "NEMO_EDGE_KEY_PASSWORD"
"""The environment's variable that has the password of a private key that is encrypted."""

_MOST_BYTES = 4 * 2**20
_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)
_CURVE = "give a PEM file of a key on P-256, P-384 or P-521, as of `openssl ecparam -name prime256v1 -genkey -noout`"


class Signer(BaseModel):
    """What a manifest is signed with: a private key, with its certificate where it has one, or a Sigstore identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: Path | None = None
    certificate: Path | None = None
    """Of the key, by one of the authorities that a verifier knows."""
    chain: tuple[Path, ...] = ()
    """Certificates between that one and the authority's."""
    sigstore: bool = False
    """By the identity that the machine or its user has with Sigstore, which needs a network."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.key is None) != self.sigstore:
            raise ValueError("sign with a key (--key) or with Sigstore (--sigstore)")
        if (self.certificate is not None or self.chain) and self.key is None:
            raise ValueError("a certificate is that of a key: give --key, too")
        return self


class Trust(BaseModel):
    """Whose signatures are taken: of public keys, of certificates by some authorities, or of a Sigstore identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    public_key: Path | None = None
    """A file of one key, or of several, each of which is taken: so a new one is known before the old one goes."""
    authorities: tuple[Path, ...] = ()
    """Certificates of the authorities."""
    signer: str = ""
    """Whom Sigstore's certificate names, an address or a URI."""
    issuer: str = ""
    """Who vouches for that signer, a URL."""
    revocations: Path | None = None
    """The signed list of bundles that are not to be opened any more; None for none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if bool(self.signer) != bool(self.issuer):
            raise ValueError("a signer is known to Sigstore by an issuer: give both, --signer and --issuer")
        if (self.public_key is not None) + bool(self.authorities) + bool(self.signer) != 1:
            raise ValueError("say whose signature is taken: --public-key, or --authority, or --signer with --issuer")
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """The keys, the authorities and the list, as far as there are some."""
        return tuple(path for path in (self.public_key, *self.authorities, self.revocations) if path is not None)

    def placed(self, folder: Path | None) -> Trust:
        """The same with all paths absolute or, where a folder is given, with the files in that folder, as a server finds them.

        Raises `InputError` for a folder that is not absolute, for files that would be one there, and for a path that is not UTF-8.
        """
        paths = self.files
        if folder is not None and not folder.is_absolute():
            raise InputError(f"--trusted-at {folder} is not absolute: give the folder as the server finds it, from / on")
        twice = next((path.name for path in paths if [each.name for each in paths].count(path.name) > 1), None)
        if folder is not None and twice is not None:
            raise InputError(f"{folder} cannot have two files {twice}: give the keys, the authorities and the list names of their own")
        for path in (*paths, *([] if folder is None else [folder])):
            check_letters(str(path), "the path of a key, an authority or the list")

        def place(path: Path) -> Path:
            return path.absolute() if folder is None else folder / path.name

        changes: dict[str, Any] = {"authorities": tuple(map(place, self.authorities))}
        changes |= {name: place(path) for name in ("public_key", "revocations") if (path := getattr(self, name)) is not None}
        return self.model_copy(update=changes)


class Signed(BaseModel):
    """A signature that was put beside a manifest."""

    model_config = ConfigDict(frozen=True)

    bundle: str
    signature: str
    """Its path."""
    identity: str
    """Which model it is; the signature is of the whole manifest, which says so."""


def sign(folder: Path, signer: Signer) -> Signed:
    """Sign a bundle whose files are those of its manifest, and put the signature beside the manifest.

    Raises `BundleError` for a bundle that was changed, `InputError` for a key that cannot be used, `MissingDependency` without the library.
    """
    config = _signing(signer)
    with holding(folder):
        found = verify(folder)
        if found.problems:
            raise BundleError(f"{folder} was changed since it was built ({found.problems[0]}): build it again; nothing was signed")
        content = read_bytes(folder / MANIFEST)
        if sha256(content).hexdigest() != found.manifest:
            raise BundleError(f"{folder} was built again meanwhile: run the same command once more")
        name = folder.resolve().name.encode(errors="replace").decode()  # in the signature, as the library's own command wants it
        signature = _signed(config, content, MANIFEST, name, online=signer.sigstore)
        staged = temporary(folder)  # beside the bundle: what a kill leaves in it would be a file that was added
        try:
            staged.write_bytes(signature)
            os.replace(staged, folder / SIGNATURE)
        except OSError as error:
            raise explain(error, folder / SIGNATURE) from error
        finally:
            staged.unlink(missing_ok=True)
    return Signed(bundle=str(folder), signature=str(folder / SIGNATURE), identity=found.identity)


def sign_bytes(content: bytes, name: str, signer: Signer) -> bytes:
    """Return a signature of what a file of this name holds, a Sigstore bundle in JSON."""
    return _signed(_signing(signer), content, name, name, online=signer.sigstore)


def check_signed_bytes(content: bytes, name: str, signature: bytes, trust: Trust, what: str) -> None:
    """Raise `BundleError`, which calls it `what`, unless a signature is of what a file of this name holds, and of whom is trusted.

    Raises `InputError` for a key that cannot be used, `MissingDependency` without the library.
    """
    _check(_verifying(trust), content, name, signature, what)


def signed_manifest(folder: Path, trust: Trust) -> tuple[Manifest, str]:
    """Return the manifest in a folder, and its sha256, once its signature is that of whom is trusted. No other file is read.

    Raises `BundleError` without a signature and for any other, and as `check_signed_bytes`.
    """
    configs = _verifying(trust)
    content = read_bytes(folder / MANIFEST)
    if not (folder / SIGNATURE).exists():
        raise BundleError(f"{folder} is not signed (it has no {SIGNATURE}): sign it with `nemo-edge sign`, or get one that is")
    _check(configs, content, MANIFEST, read_bytes(folder / SIGNATURE, most=_MOST_BYTES), str(folder))
    try:
        return Manifest.model_validate_json(content), sha256(content).hexdigest()
    except ValidationError as error:
        raise BundleError(f"{folder} has a signed manifest that this nemo-edge cannot read: build the bundle again") from error


def check_expected(folder: Path, found: Verification, expected: str | None, *, engines: bool) -> None:
    """Raise `BundleError` for a bundle that has neither the identity nor the manifest that was expected; where none was, nothing.

    An identity says nothing of the bytes of TensorRT engines, which are native code: where these are meant, too (`engines`), and nothing
    else says whose they are, it is not enough for a bundle that has any.
    """
    if expected is None or expected.lower() == found.manifest:
        return
    if expected.lower() != found.identity:
        raise BundleError(f"{folder} is not the bundle that was expected: its identity is {found.identity}, and not {expected}")
    if engines and found.plans:
        raise BundleError(
            f"{folder} has TensorRT engines, of whose bytes its identity says nothing: ask for its signature, too, or expect the sha256 of "
            f"its manifest ({found.manifest})"
        )


def public_key_of(key: Path) -> bytes:
    """Return the public key of a private one, PEM. Raises `InputError` for what is none."""
    check_regular(key, "key")
    serialization = _library("cryptography.hazmat.primitives.serialization")
    with _reading(str(key)):
        public = serialization.load_pem_private_key(key.read_bytes(), _password()).public_key()
        return bytes(public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))


def _password() -> bytes | None:
    """That of a private key, where one is set."""
    found = os.environ.get(PASSWORD)
    return found.encode() if found else None


def _signing(signer: Signer) -> Any:
    """The library's configuration that signs, with its key read."""
    config = _library("model_signing.signing").Config()
    for path in (signer.key, signer.certificate, *signer.chain):
        if path is not None:
            check_regular(path, "key" if path == signer.key else "certificate")
    if signer.sigstore:
        with _reaching():
            config.use_sigstore_signer(use_ambient_credentials=True)
    else:
        with _reading(str(signer.key if signer.certificate is None else f"{signer.key} with the certificate {signer.certificate}")):
            if signer.certificate is None:
                config.use_elliptic_key_signer(private_key=signer.key, password=_password())
            else:
                # the library takes no empty chain
                config.use_certificate_signer(
                    private_key=signer.key, signing_certificate=signer.certificate, certificate_chain=signer.chain or (signer.certificate,)
                )
    return config.set_hashing_config(_everything())


def _verifying(trust: Trust) -> list[Any]:
    """The library's configurations that verify, with their keys read: one for each public key, and what one of them takes is taken."""
    make = _library("model_signing.verifying").Config
    for path in (trust.public_key, *trust.authorities):
        if path is not None:
            check_regular(path, "key" if path == trust.public_key else "certificate")
    if trust.public_key is not None:
        with _reading(str(trust.public_key)), _public_keys(trust.public_key) as keys:
            configs = [make().use_elliptic_key_verifier(public_key=key) for key in keys]
    elif trust.authorities:
        with _reading(", ".join(map(str, trust.authorities)), "give PEM files of certificates of authorities"):
            configs = [make().use_certificate_verifier(certificate_chain=trust.authorities)]
    else:
        with _reaching():
            configs = [make().use_sigstore_verifier(identity=trust.signer, oidc_issuer=trust.issuer)]
    return [config.set_hashing_config(_everything()) for config in configs]


@contextmanager
def _public_keys(path: Path) -> Iterator[list[Path]]:
    """A file of each key that is in one, as the library takes them; the file itself where there is one key, or none."""
    found = _PUBLIC_KEY.findall(read_bytes(path, "key", most=_MOST_BYTES))
    if len(found) < 2:
        yield [path]
        return
    with tempfile.TemporaryDirectory(prefix="nemo-edge-") as scratch:
        keys = [Path(scratch) / f"{number}.pub" for number in range(len(found))]
        for key, content in zip(keys, found, strict=True):
            key.write_bytes(content + b"\n")
        yield keys


def _signed(config: Any, content: bytes, name: str, folder: str, *, online: bool) -> bytes:
    with tempfile.TemporaryDirectory(prefix="nemo-edge-") as scratch:
        place = Path(scratch) / "model" / folder
        place.mkdir(parents=True)
        (place / name).write_bytes(content)
        with _reaching() if online else nullcontext():
            config.sign(place, Path(scratch) / SIGNATURE)
        return (Path(scratch) / SIGNATURE).read_bytes()


def _check(configs: Sequence[Any], content: bytes, name: str, signature: bytes, what: str) -> None:
    with tempfile.TemporaryDirectory(prefix="nemo-edge-") as scratch:
        place = Path(scratch) / "folder"
        place.mkdir()
        (place / name).write_bytes(content)
        (Path(scratch) / SIGNATURE).write_bytes(signature)
        for number, config in enumerate(configs, 1):
            try:
                with redirect_stdout(sys.stderr):  # the library warns where a result is printed
                    config.verify(place, Path(scratch) / SIGNATURE)
                signed = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))["predicate"]["resources"]
                if {each["name"]: each["digest"] for each in signed} != {name: sha256(content).hexdigest()}:
                    raise ValueError("another file was signed")  # the library leaves out what a signature says is to be left out
                return
            except Exception as error:  # whatever cryptography, pydantic, json or sigstore raises of what is no signature, or another's
                if number < len(configs):  # another key may be that of who signed
                    continue
                why = "another file was signed" if "mismatch: [" in str(error) else first_line(error)
                raise BundleError(f"{what} is not signed by whom is trusted ({why}): get it again from who made it") from error


def _everything() -> Any:
    return _library("model_signing.hashing").Config().set_ignored_paths(paths=(), ignore_git_paths=False)


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependency(f"signatures need {error.name or 'model-signing'}: pip install 'nemo-edge[sign]'") from error


@contextmanager
def _reading(key: str, remedy: str = _CURVE) -> Iterator[None]:
    """What the library makes of a key, as something a user can act on."""
    try:
        yield
    except Exception as error:  # cryptography and OpenSSL raise several classes, and of an RSA key the library an AttributeError
        said = str(error).lower()
        if "not encrypted" in said:
            remedy = f"it has no password: unset {PASSWORD}"
        elif "encrypted" in said or "password" in said:
            remedy = f"it is encrypted: set {PASSWORD} (beside a certificate it must not be)"
        raise InputError(f"{key} cannot be used ({first_line(error)}): {remedy}") from error


@contextmanager
def _reaching() -> Iterator[None]:
    """What Sigstore's client makes of a network that is not there, or of nobody who signs."""
    try:
        yield
    except Exception as error:  # of what Sigstore's client is made of, each part has classes of its own
        why = f"Sigstore cannot be reached, or does not know who signs ({first_line(error)})"
        raise InputError(f"{why}: run this where it can, or take a key instead (--key, --public-key)") from error
