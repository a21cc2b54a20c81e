"""The list of bundles that are not to be opened: signed as a whole, and nothing is opened without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from signing import write_certificates, write_key

from bundle.test_manifest import published
from nemo_edge.bundle import engines
from nemo_edge.bundle.manifest import amend, open_bundle
from nemo_edge.bundle.revocations import Revocations, check_not_revoked, check_trusted, identity_of, revoke
from nemo_edge.bundle.signature import Signer, Trust, sign
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_file

ONE, TWO = "1" * 64, "2" * 64


pytest.importorskip("model_signing.signing")  # with all that it imports


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_key(tmp_path / "key.pem")


def test_a_list_is_made_and_added_to_by_the_same_key(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path, signer, trust = tmp_path / "list.json", Signer(key=keys[0]), Trust(public_key=keys[1])
    first = revoke(path, [ONE], signer, "it leaks")
    assert Revocations.load(path, trust) == first
    revoke(path, [ONE, TWO], signer, "it leaks, too")
    found = Revocations.load(path, trust).identities
    assert {identity: each.reason for identity, each in found.items()} == {ONE: "it leaks", TWO: "it leaks, too"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key.pem", "key.pub", "list.json"]


def test_a_revoked_bundle_is_refused_although_it_is_signed(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder, path = published(tmp_path / "out"), tmp_path / "list.json"
    sign(folder, Signer(key=keys[0]))
    revoke(path, [ONE], Signer(key=keys[0]))
    trust = Trust(public_key=keys[1], revocations=path)
    manifest, digest = check_trusted(folder, trust)
    assert digest == sha256_file(folder / "manifest.json")
    revoke(path, [identity_of(str(folder))], Signer(key=keys[0]), "a memory was found")
    with pytest.raises(BundleError, match=r"out was revoked on 20.*\(a memory was found\): ship another bundle; nothing was opened"):
        check_trusted(folder, trust)
    assert "was revoked on" in engines.verify(folder, trust=trust).problems[0]
    check_not_revoked(manifest.identity, Trust(public_key=keys[1]), "out")


def test_a_revoked_bundle_stays_one_when_it_is_judged_again(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder, path, signer = published(tmp_path / "out"), tmp_path / "list.json", Signer(key=keys[0])
    revoke(path, [identity_of(str(folder))], signer)
    amend(folder, open_bundle(folder).model_copy(update={"created": "2030-01-01T00:00:00+00:00"}), lambda staged: None)
    sign(folder, signer)
    with pytest.raises(BundleError, match="was revoked on"):
        check_trusted(folder, Trust(public_key=keys[1], revocations=path))


def test_a_list_from_before_there_were_identities_revokes_by_the_manifest(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    folder, path, signer = published(tmp_path / "out"), tmp_path / "list.json", Signer(key=keys[0])
    sign(folder, signer)
    revoke(path, [sha256_file(folder / "manifest.json")], signer)
    with pytest.raises(BundleError, match="was revoked on"):
        check_trusted(folder, Trust(public_key=keys[1], revocations=path))


def test_a_list_that_is_missing_changed_or_another_s_revokes_all(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path = tmp_path / "list.json"
    trust = Trust(public_key=keys[1], revocations=path)
    with pytest.raises(InputError, match="does not exist: put it there, signed, as `nemo-edge revoke` writes it"):
        check_not_revoked(TWO, trust, "out")
    revoke(path, [ONE], Signer(key=keys[0]))
    content = json.loads(path.read_text())
    for changed in ({**content, "identities": {}}, {**content, "signature": ""}, {**content, "written": "2099-01-01"}):
        path.write_text(json.dumps(changed))
        with pytest.raises(BundleError, match=r"list of revocations .* is not signed by whom is trusted"):
            check_not_revoked(TWO, trust, "out")
        with pytest.raises(BundleError, match="is not signed by whom is trusted"):
            revoke(path, [TWO], Signer(key=keys[0]))
    path.write_text("{}")
    with pytest.raises(InputError, match="is no list of revocations"):
        check_not_revoked(TWO, trust, "out")
    path.unlink()
    revoke(path, [ONE], Signer(key=write_key(tmp_path / "other.pem")[0]))
    with pytest.raises(BundleError, match="is not signed by whom is trusted"):
        check_not_revoked(TWO, trust, "out")


def test_a_list_signed_with_a_certificate_is_taken_by_its_authority(tmp_path: Path) -> None:
    path, (key, certificate, authority) = tmp_path / "list.json", write_certificates(tmp_path)
    signer = Signer(key=key, certificate=certificate)
    revoke(path, [ONE], signer)
    with pytest.raises(InputError, match="the list is there already: say who signed it, with --public-key, --authority"):
        revoke(path, [TWO], signer)
    revoke(path, [TWO], signer, trust=Trust(authorities=(authority,)))
    assert Revocations.load(path, Trust(authorities=(authority,))).identities.keys() == {ONE, TWO}


def test_what_is_neither_an_identity_nor_a_bundle_is_refused(tmp_path: Path) -> None:
    assert identity_of("AB" * 32) == "ab" * 32
    with pytest.raises(InputError, match="is neither an identity, 64 hexadecimal digits"):
        identity_of("12ab")
    with pytest.raises(BundleError, match=r"has no manifest\.json"):
        identity_of(str(tmp_path))


def test_a_list_has_identities_alone(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    path, signer = tmp_path / "list.json", Signer(key=keys[0])
    for wrong in ("12ab", f"{ONE} ", ""):
        with pytest.raises(InputError, match="is no identity: give 64 hexadecimal digits"):
            revoke(path, [wrong], signer)
        with pytest.raises(ValidationError):
            Revocations.model_validate({"written": "", "identities": {wrong: {"since": ""}}})
    with pytest.raises(InputError, match="--reason has half of a letter"):
        revoke(path, [ONE], signer, "\udcff")
    assert not path.exists()
    assert revoke(path, ["AB" * 32], signer).identities.keys() == {"ab" * 32}


def test_a_bundle_in_a_folder_named_like_an_identity_has_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = published(tmp_path / ONE)
    monkeypatch.chdir(tmp_path)
    assert identity_of(ONE) == open_bundle(folder).identity != ONE
