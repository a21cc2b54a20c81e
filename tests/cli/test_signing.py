"""`nemo-edge sign`, `revoke`, and what `verify` says of a signature."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bundle.test_manifest import published
from signing import write_key

from cli.test_main import Run, assert_refused, run
from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.bundle.revocations import Revocations
from nemo_edge.bundle.signature import Trust
from nemo_edge.system.files import sha256_file

__all__ = ["run"]


pytest.importorskip("model_signing.signing")  # with all that it imports


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_key(tmp_path / "key.pem")


def test_a_signed_bundle_is_verified_by_the_public_key(run: Run, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = published(tmp_path / "out")
    identity, manifest = open_bundle(folder).identity, sha256_file(folder / "manifest.json")
    shown = run("verify", folder)
    assert f"manifest: {manifest}\nidentity: {identity}\nnot signed: anybody can write such a manifest" in shown.out
    for expected in (identity, manifest):
        assert "not signed; it is the bundle that was expected" in run("verify", folder, "--expect", expected).out
    shown = run("sign", folder, "--key", keys[0])
    assert (shown.code, shown.out, shown.err) == (0, f"{folder}/manifest.sig: signed\nidentity: {identity}\n", "")
    assert "signed; by whom was not asked: --public-key" in run("verify", folder).out
    shown = run("verify", folder, "--signature", "--public-key", keys[1], "--expect", identity)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.endswith(f"identity: {identity}\nsigned by whom is trusted\n")
    found = json.loads(run("verify", folder, "--public-key", keys[1], "--json").out)
    assert (found["identity"], found["signed"], found["trusted"], found["passed"]) == (identity, True, True, True)


def test_another_key_and_another_identity_are_exit_code_2(run: Run, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder = published(tmp_path / "out")
    run("sign", folder, "--key", keys[0])
    shown = run("verify", folder, "--public-key", write_key(tmp_path / "other.pem")[1])
    assert (shown.code, shown.out.count("is not signed by whom is trusted")) == (2, 1)
    assert shown.out.endswith("out: refused\n")
    shown = run("verify", folder, "--expect", "0" * 64)
    assert (shown.code, shown.out.count("is not the bundle that was expected")) == (2, 1)


def test_a_revoked_bundle_is_refused(run: Run, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder, path = published(tmp_path / "out"), tmp_path / "revoked.json"
    run("sign", folder, "--key", keys[0])
    shown = run("revoke", folder, "1" * 64, "--list", path, "--key", keys[0], "--reason", "a memory was found")
    assert (shown.code, shown.out, shown.err) == (0, f"{path}: 2 revoked, signed\n", "")
    shown = run("verify", folder, "--public-key", keys[1], "--revocations", path)
    assert shown.code == 2
    assert "(a memory was found): ship another bundle" in shown.out
    assert json.loads(run("revoke", "2" * 64, "--list", path, "--key", keys[0], "--json").out)["identities"].keys() >= {"1" * 64, "2" * 64}


def test_a_list_goes_over_to_a_new_key(run: Run, tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path, (new, public) = tmp_path / "revoked.json", write_key(tmp_path / "new.pem")
    run("revoke", "1" * 64, "--list", path, "--key", keys[0])
    assert_refused(run("revoke", "2" * 64, "--list", path, "--key", new), "is not signed by whom is trusted")
    assert run("revoke", "2" * 64, "--list", path, "--key", new, "--public-key", keys[1]).out == f"{path}: 2 revoked, signed\n"
    assert set(Revocations.load(path, Trust(public_key=public)).identities) == {"1" * 64, "2" * 64}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("verify", "OUT", "--signature"), "--signature: say whose signature is taken: --public-key, or --authority"),
        (("verify", "OUT", "--signer", "me@example.com"), "--signer: a signer is known to Sigstore by an issuer: give both"),
        (("verify", "OUT", "--signer", "", "--issuer", ""), "--signer: say whose signature is taken"),
        (("ship", "OUT", "--to", "repository", "--signer", ""), "--signer: say whose signature is taken"),
        (("verify", "OUT", "--revocations", "list"), "--revocations: say whose signature is taken"),
        (("verify", "OUT", "--expect", "12ab"), "--expect 12ab: give an identity, 64 hexadecimal digits"),
        (("verify", "OUT", "--public-key", "nothing.pub"), "key nothing.pub does not exist"),
        (("sign", "OUT"), "sign with a key (--key) or with Sigstore (--sigstore)"),
        (("sign", "OUT", "--key", "nothing.pem"), "key nothing.pem does not exist"),
        (("sign", "OUT", "--sigstore", "--certificate", "a.crt"), "a certificate is that of a key: give --key, too"),
        (("revoke", "12ab", "--list", "list", "--key", "KEY"), "'12ab' is neither an identity"),
        (("revoke", "1" * 64, "--list", "OUT", "--key", "KEY"), "is a folder: give the path of a file"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    run: Run, tmp_path: Path, keys: tuple[Path, Path], options: tuple[str, ...], said: str
) -> None:
    places = {"OUT": published(tmp_path / "out"), "KEY": keys[0]}
    assert_refused(run(*(places.get(each, each) for each in options)), said)


def test_without_the_library_the_exit_code_is_4(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: tuple[Path, Path]) -> None:
    monkeypatch.setitem(sys.modules, "model_signing.signing", None)
    assert_refused(run("sign", published(tmp_path / "out"), "--key", keys[0]), "pip install 'nemo-edge[sign]'", code=4)
