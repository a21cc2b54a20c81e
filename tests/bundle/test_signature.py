"""Signatures of bundles: of the whole folder by its manifest, by one key and no other, and as OpenSSF's own command reads them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import plans
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from pydantic import ValidationError
from signing import write_certificates, write_key

from bundle.test_identity import with_plan
from bundle.test_manifest import manifest, published
from nemo_edge.bundle import engines
from nemo_edge.bundle.manifest import SIGNATURE, amend, open_bundle, publish, staging, verify
from nemo_edge.bundle.revocations import check_trusted
from nemo_edge.bundle.signature import PASSWORD, Signer, Trust, check_expected, public_key_of, sign, signed_manifest
from nemo_edge.system.errors import BundleError, InputError, MissingDependency
from nemo_edge.system.files import sha256_file

signing, hashing, verifying = (pytest.importorskip(f"model_signing.{name}") for name in ("signing", "hashing", "verifying"))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_key(tmp_path / "key.pem")


@pytest.fixture
def folder(tmp_path: Path, keys: tuple[Path, Path]) -> Path:
    """A signed bundle."""
    made = published(tmp_path / "out")
    sign(made, Signer(key=keys[0]))
    return made


def test_a_signature_stands_beside_the_manifest_and_changes_nothing_else(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = published(tmp_path / "out")
    before = {p.name: sha256_file(p) for p in folder.rglob("*") if p.is_file()}
    signed = sign(folder, Signer(key=keys[0]))
    assert (signed.identity, signed.signature) == (open_bundle(folder).identity, str(folder / "manifest.sig"))
    assert {p.name: sha256_file(p) for p in folder.rglob("*") if p.is_file() and p.name != SIGNATURE} == before
    assert verify(folder).problems == ()
    assert signed_manifest(folder, Trust(public_key=keys[1])) == (open_bundle(folder), sha256_file(folder / "manifest.json"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key.pem", "key.pub", "out"]


def test_verify_says_whether_it_was_asked_whose_it_is(folder: Path, keys: tuple[Path, Path]) -> None:
    found = engines.verify(folder)
    assert (found.passed, found.signed, found.trusted) == (True, True, False)
    found = engines.verify(folder, expect=found.identity.upper(), trust=Trust(public_key=keys[1]))
    assert (found.problems, found.signed, found.trusted) == ((), True, True)


def test_each_key_of_a_file_of_several_is_taken(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    new, other = (write_key(tmp_path / f"{name}.pem") for name in ("new", "other"))
    trust = Trust(public_key=tmp_path / "trusted.pub")
    both = [keys[1].read_text(), new[1].read_text()]
    for content in ("".join(both), "# old, then new\n" + "".join(both[::-1])):
        trust.files[0].write_text(content)
        for key in (keys[0], new[0]):
            sign(folder, Signer(key=key))
            assert signed_manifest(folder, trust)[0] == open_bundle(folder)
        sign(folder, Signer(key=other[0]))
        with pytest.raises(BundleError, match="is not signed by whom is trusted"):
            signed_manifest(folder, trust)
    trust.files[0].write_text(both[1])  # the old one is taken no more
    sign(folder, Signer(key=keys[0]))
    with pytest.raises(BundleError, match="is not signed by whom is trusted"):
        signed_manifest(folder, trust)
    trust.files[0].write_text(both[1] + "-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n")
    with pytest.raises(InputError, match=r"trusted\.pub cannot be used"):
        signed_manifest(folder, trust)


def test_the_signature_is_exempt_from_the_hashes_by_its_name_alone(folder: Path) -> None:
    signature = (folder / SIGNATURE).read_bytes()
    for name in ("unet/manifest.sig", "manifest.sig.bak", "manifest.json.sig"):
        (folder / name).write_bytes(signature)
        assert verify(folder).problems == (f"{name} was added",)
        (folder / name).unlink()
    (folder / SIGNATURE).rename(folder.parent / "elsewhere")
    (folder / SIGNATURE).symlink_to("../elsewhere")
    assert verify(folder).problems == ("manifest.sig is a link",)


def test_another_s_key_a_changed_manifest_and_no_signature_are_refused(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = Trust(public_key=write_key(tmp_path / "other.pem")[1])
    assert "is not signed by whom is trusted (Key mismatch" in engines.verify(folder, trust=other).problems[0]
    trust = Trust(public_key=keys[1])
    signature = (folder / SIGNATURE).read_bytes()
    amend(folder, open_bundle(folder), lambda staged: (staged / "evil.so").write_bytes(b"\0") and None)
    assert not (folder / SIGNATURE).exists()  # a bundle that is changed loses it
    assert verify(folder).passed
    assert "is not signed (it has no manifest.sig): sign it" in engines.verify(folder, trust=trust).problems[0]
    (folder / SIGNATURE).write_bytes(signature)
    assert "another file was signed" in engines.verify(folder, trust=trust).problems[0]


def test_a_changed_file_is_found_by_its_hash_although_the_signature_holds(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / "unet" / "model.onnx.data").write_bytes(b"other weights")
    found = engines.verify(folder, trust=Trust(public_key=keys[1]))
    assert (found.problems, found.trusted) == (("unet/model.onnx.data was changed",), True)
    with pytest.raises(BundleError, match=r"was changed since it was built \(unet/model.onnx.data was changed\).*nothing was signed"):
        sign(folder, Signer(key=keys[0]))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"mediaType": 3}', "[" * 100_000, '{"verificationMaterial": {}}', "\ud800"])
def test_what_is_no_signature_is_refused(folder: Path, keys: tuple[Path, Path], content: str) -> None:
    (folder / SIGNATURE).write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(BundleError, match="is not signed by whom is trusted"):
        signed_manifest(folder, Trust(public_key=keys[1]))


def test_a_signature_with_other_parts_is_refused(folder: Path, keys: tuple[Path, Path]) -> None:
    whole = json.loads((folder / SIGNATURE).read_text())
    for change in ({"payload": "e30="}, {"payloadType": "text/plain"}, {"signatures": []}, {"signatures": [{"sig": "AAAA", "keyid": ""}]}):
        (folder / SIGNATURE).write_text(json.dumps({**whole, "dsseEnvelope": {**whole["dsseEnvelope"], **change}}))
        with pytest.raises(BundleError, match="is not signed by whom is trusted"):
            signed_manifest(folder, Trust(public_key=keys[1]))


def test_a_signature_that_leaves_the_manifest_out_is_refused(folder: Path, keys: tuple[Path, Path]) -> None:
    hashed = hashing.Config().set_ignored_paths(paths=[p.name for p in folder.iterdir()], ignore_git_paths=False)
    signing.Config().use_elliptic_key_signer(private_key=keys[0]).set_hashing_config(hashed).sign(folder, folder / SIGNATURE)
    verifying.Config().use_elliptic_key_verifier(public_key=keys[1]).verify(folder, folder / SIGNATURE)  # as the library sees it
    with pytest.raises(BundleError, match="another file was signed"):
        signed_manifest(folder, Trust(public_key=keys[1]))


def test_a_pipe_in_the_place_of_a_signature_is_not_waited_for(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / SIGNATURE).unlink()
    os.mkfifo(folder / SIGNATURE)
    with pytest.raises(InputError, match=r"manifest.sig cannot be read: it is a pipe"):
        signed_manifest(folder, Trust(public_key=keys[1]))
    assert verify(folder).problems == ("manifest.sig is no regular file",)


def test_a_certificate_is_asked_for_by_its_authority(tmp_path: Path) -> None:
    folder = published(tmp_path / "out")
    key, certificate, authority = write_certificates(tmp_path)
    sign(folder, Signer(key=key, certificate=certificate))
    assert signed_manifest(folder, Trust(authorities=(authority,)))[0] == open_bundle(folder)
    (tmp_path / "others").mkdir()
    with pytest.raises(BundleError, match="is not signed by whom is trusted"):
        signed_manifest(folder, Trust(authorities=(write_certificates(tmp_path / "others")[2],)))
    with pytest.raises(InputError, match="does not match"):
        sign(folder, Signer(key=write_key(tmp_path / "other.pem")[0], certificate=certificate))


def test_openssf_s_own_command_takes_a_signed_bundle(folder: Path, keys: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(folder), "--signature", str(folder / SIGNATURE)]
    options = ["--public_key", str(keys[1]), "--ignore_unsigned_files"]
    assert "Verification succeeded" in subprocess.run([*command, *options], capture_output=True, text=True, check=True).stdout
    (folder / "manifest.json").write_text((folder / "manifest.json").read_text() + "\n")
    found = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    said = (found.stdout + found.stderr).replace("\\", "")  # its versions say it on one or the other, quoted or not
    assert (found.returncode, "Hash mismatch for 'manifest.json'" in said) == (1, True)


def test_a_folder_whose_name_is_not_utf_8_is_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = published(tmp_path / os.fsdecode(b"d\xff"))
    sign(folder, Signer(key=keys[0]))
    assert signed_manifest(folder, Trust(public_key=keys[1]))


def test_an_encrypted_key_has_its_password_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, (key, public) = published(tmp_path / "out"), write_key(tmp_path / "key.pem", b"secret", ec.SECP384R1())
    with pytest.raises(InputError, match=f"it is encrypted: set {PASSWORD}"):
        sign(folder, Signer(key=key))
    monkeypatch.setenv(PASSWORD, "secret")
    sign(folder, Signer(key=key))
    assert signed_manifest(folder, Trust(public_key=public))
    assert public_key_of(key) == public.read_bytes()
    with pytest.raises(InputError, match=f"it has no password: unset {PASSWORD}"):
        sign(folder, Signer(key=write_key(tmp_path / "open.pem")[0]))
    with pytest.raises(InputError, match="give PEM files of certificates of authorities"):
        signed_manifest(folder, Trust(authorities=(public,)))


def test_a_key_that_cannot_be_used_is_named_before_anything_is_read(tmp_path: Path) -> None:
    for curve in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1())):
        sealed = serialization.NoEncryption()
        (tmp_path / "bad.pem").write_bytes(curve.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
        with pytest.raises(InputError, match=r"bad.pem cannot be used .* give a PEM file of a key on P-256"):
            sign(tmp_path / "nothing", Signer(key=tmp_path / "bad.pem"))
    with pytest.raises(InputError, match=r"key .*nothing.pem does not exist"):
        check_trusted(published(tmp_path / "out"), Trust(public_key=tmp_path / "nothing.pem"))


def test_sigstore_out_of_reach_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))  # where it keeps what it trusts
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    folder = published(tmp_path / "out")
    with pytest.raises(InputError, match=r"Sigstore cannot be reached.*take a key instead"):
        sign(folder, Signer(sigstore=True))
    assert not (folder / SIGNATURE).exists()
    with pytest.raises(InputError, match=r"Sigstore cannot be reached.*take a key instead"):
        signed_manifest(folder, Trust(signer="me@example.com", issuer="https://example.com"))


def test_without_the_library_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[Path, Path]) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    with pytest.raises(MissingDependency, match=r"pip install 'nemo-edge\[sign\]'"):
        sign(published(tmp_path / "out"), Signer(key=keys[0]))


def test_a_bundle_that_is_built_again_has_no_signature(folder: Path) -> None:
    with staging(folder) as staged:
        (staged / "unet").mkdir()
        publish(staged, folder, manifest("new"))
    assert not (folder / SIGNATURE).exists()


def test_another_identity_than_the_expected_one_is_refused(folder: Path) -> None:
    found = engines.verify(folder, expect="0" * 64)
    assert found.problems == (f"{folder} is not the bundle that was expected: its identity is {found.identity}, and not {'0' * 64}",)
    check_expected(folder, found, None, engines=True)


def test_a_bundle_is_expected_by_its_identity_or_as_the_very_manifest(folder: Path) -> None:
    found = engines.verify(folder)
    assert found.identity == open_bundle(folder).identity != found.manifest == sha256_file(folder / "manifest.json")
    for expected in (found.identity, found.manifest):
        check_expected(folder, found, expected.upper(), engines=True)


def test_an_identity_alone_vouches_for_no_tensorrt_engine(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = tmp_path / "out"
    with_plan(folder, plans.standard())
    found = engines.verify(folder)
    assert found.plans == 1
    refused = engines.verify(folder, expect=found.identity)
    assert "has TensorRT engines, of whose bytes its identity says nothing: ask for its signature, too" in refused.problems[0]
    assert engines.verify(folder, expect=found.manifest).problems == ()
    check_expected(folder, found, found.identity, engines=False)
    sign(folder, Signer(key=keys[0]))
    assert engines.verify(folder, expect=found.identity, trust=Trust(public_key=keys[1])).problems == ()


def test_it_is_said_whose_signature_is_meant_once(tmp_path: Path) -> None:
    for given in ({}, {"public_key": tmp_path, "authorities": (tmp_path,)}, {"signer": "me"}, {"revocations": tmp_path}):
        with pytest.raises(ValidationError):
            Trust.model_validate(given)
    for given in ({}, {"key": tmp_path, "sigstore": True}, {"sigstore": True, "certificate": tmp_path}):
        with pytest.raises(ValidationError):
            Signer.model_validate(given)


def test_a_server_s_files_may_lie_elsewhere(tmp_path: Path) -> None:
    trust = Trust(public_key=tmp_path / "a.pub", revocations=tmp_path / "list.json")
    placed = trust.placed(Path("/etc/trusted"))
    assert (placed.public_key, placed.revocations) == (Path("/etc/trusted/a.pub"), Path("/etc/trusted/list.json"))
    for wrong, folder, said in (
        (trust, Path("etc"), "--trusted-at etc is not absolute"),
        (Trust(public_key=tmp_path / "a", revocations=tmp_path / "b" / "a"), Path("/etc"), "/etc cannot have two files a"),
        (Trust(public_key=tmp_path / "\udcff.pub"), None, "has half of a letter"),
    ):
        with pytest.raises(InputError, match=said):
            wrong.placed(folder)
    assert Trust(public_key=Path("a.pub")).placed(None).public_key == Path.cwd() / "a.pub"
