"""A signed bundle on a server: nothing is opened before its signature was asked for; what was revoked, changed or is another's is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")
pytest.importorskip("model_signing.signing")

from backendutils import TritonModelException, served
from served import pass_gates
from signing import write_key

from nemo_edge.bundle.manifest import MANIFEST, SIGNATURE, amend, open_bundle, verify
from nemo_edge.bundle.policies import Policies, baked_policies, masked_policies, read_policies
from nemo_edge.bundle.revocations import identity_of, revoke
from nemo_edge.bundle.signature import Signer, Trust, sign
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.serving.golden import LEVELS, Golden, check_golden
from nemo_edge.serving.hotupdate import ship_masks
from nemo_edge.serving.local import open_painter
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Environment, serve
from nemo_edge.serving.signed import copy_origin, origin_of, read_meant
from nemo_edge.serving.updates import PoliciesInForce, put_policies
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_file


class Place(NamedTuple):
    """A repository of a signed bundle, the bundle, the key that signs, and whom its server trusts."""

    repository: Path
    bundle: Path
    key: Path
    trust: Trust

    def version(self, model: str) -> Path:
        return self.repository / model / "1"


@pytest.fixture(scope="module")
def shipped(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("signed")
    bundle = shutil.copytree(shippable, folder / "bundle")
    key, public = write_key(folder / "key.pem")
    revoke(folder / "revoked.json", ["0" * 64], Signer(key=key))
    sign(bundle, Signer(key=key))
    trust = Trust(public_key=public, revocations=folder / "revoked.json")
    ship(bundle, folder / "repository", trust=trust)
    return Place(folder / "repository", bundle, key, trust)


@pytest.fixture
def place(shipped: Place, tmp_path: Path) -> Place:
    """The same to be changed: what its server trusts is beside it."""
    folder = shutil.copytree(shipped.repository.parent, tmp_path / "here")
    for described in (folder / "repository").glob("*/1/version.json"):
        described.write_text(described.read_text().replace(str(shipped.repository.parent), str(folder)))
    trust = shipped.trust.placed(folder)
    return Place(folder / "repository", folder / "bundle", folder / "key.pem", trust)


def redescribe(version: Path, **changes: object) -> None:
    """Let a version say of itself what its files are now, as somebody does who has changed them."""
    described = json.loads((version / "version.json").read_text())
    files = {name: sha256_file(version / name) for name in described["files"] if (version / name).is_file()}
    (version / "version.json").write_text(json.dumps({**described, "files": files, **changes}))


def refused(place: Place, model: str, said: str) -> None:
    with pytest.raises(TritonModelException, match=said) as found, served(place.version(model)):
        pass
    assert "\n" not in str(found.value)


def test_a_signed_bundle_is_opened_by_the_server_and_draws_the_golden_picture(shipped: Place, golden: Golden) -> None:
    for model in ("text_encoder", "unet", "vae_decoder", "pipeline"):
        with served(shipped.version(model)) as opened:
            assert opened is not None
    with ExitStack() as stack:
        painting = open_painter(shipped.repository, stack).paint(golden.tensors)
        assert np.abs(painting.pictures.astype(int) - golden.picture).max() <= LEVELS


def test_a_revoked_bundle_is_opened_by_no_model(place: Place, tmp_path: Path) -> None:
    assert place.trust.revocations is not None
    revoke(place.trust.revocations, [identity_of(str(place.bundle))], Signer(key=place.key), "a memory was found")
    for model in ("text_encoder", "unet", "vae_decoder", "pipeline"):
        refused(place, model, r"was revoked on 20.*\(a memory was found\): ship another bundle; nothing was opened")
    with pytest.raises(BundleError, match="was revoked on"):
        ship(place.bundle, tmp_path / "other", trust=place.trust)
    assert not (tmp_path / "other").exists()
    place.trust.revocations.unlink()
    refused(place, "unet", "list of revocations .* does not exist")


def test_another_key_on_the_server_opens_nothing(place: Place, tmp_path: Path) -> None:
    shutil.copy(write_key(tmp_path / "other.pem")[1], place.trust.public_key)
    for model in ("unet", "pipeline"):
        refused(place, model, "is not signed by whom is trusted")


def test_a_version_without_its_signature_is_not_opened(place: Place) -> None:
    for model in ("unet", "pipeline"):
        (place.version(model) / "signed" / SIGNATURE).unlink()
        refused(place, model, "signed/manifest.sig is missing")
        redescribe(place.version(model))
        refused(place, model, "is not signed")


def exchange_weights(version: Path) -> None:
    weights = version / "model.onnx" / "model.onnx.data"
    weights.write_bytes(bytes(weights.stat().st_size))


def exchange_policies(version: Path) -> None:
    own = Policies.load(version / "policies.json")
    masked_policies(NeuronSet.empty(own.neurons["off"].layers), own.manifest).save(version / "policies.json")  # type: ignore[union-attr]


def exchange_neurons(version: Path) -> None:
    exchange_policies(version)
    NeuronSet.empty(NeuronSet.load(version / "signed" / "neurons.json").layers).save(version / "signed" / "neurons.json")


def exchange_manifest(version: Path) -> None:
    path = version / "signed" / MANIFEST
    path.write_text(path.read_text().replace('"passed": true', '"passed":  true'))


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        ("unet", exchange_weights, "model.onnx/model.onnx.data is not of the bundle that was signed"),
        ("unet", exchange_manifest, r"is not signed by whom is trusted \(another file was signed\)"),
        ("pipeline", exchange_policies, "is served otherwise than the bundle that was signed"),
        ("pipeline", exchange_neurons, "signed/neurons.json is not of the bundle that was signed"),
        ("pipeline", lambda version: (version / "unet" / "config.json").write_text("{}"), "unet/config.json is not of the bundle"),
    ],
)
def test_a_changed_file_is_not_opened_whatever_the_version_says_of_it(
    place: Place, model: str, change: Callable[[Path], None], said: str
) -> None:
    change(place.version(model))
    refused(place, model, "was changed since it was shipped")
    redescribe(place.version(model))
    refused(place, model, said)


def test_a_file_that_the_description_leaves_out_is_not_opened(place: Place) -> None:
    exchange_weights(place.version("unet"))
    (place.version("unet") / "version.json").write_text(
        json.dumps({**json.loads((place.version("unet") / "version.json").read_text()), "files": {}})
    )
    refused(place, "unet", "was changed since it was shipped .* was added")
    (place.version("pipeline") / "tokenizer" / "added_tokens.json").write_text('{"a photo": 5}')
    refused(place, "pipeline", "tokenizer/added_tokens.json was added")


def test_a_masked_engine_is_not_served_as_a_baked_one(place: Place) -> None:
    version = place.version("pipeline")
    for name in ("signed/neurons.json", "signed/policies.json", "policies.json"):
        (version / name).unlink(missing_ok=True)
    baked_policies(json.loads((version / "version.json").read_text())["manifest"]).save(version / "policies.json")
    redescribe(version)
    refused(place, "pipeline", "is served otherwise than the bundle that was signed")


def test_settings_are_those_of_the_signed_bundle(place: Place) -> None:
    described = json.loads((place.version("unet") / "version.json").read_text())
    redescribe(place.version("unet"), engine={**described["engine"], "provider": "cuda"})
    refused(place, "unet", "is served otherwise than the bundle that was signed")
    described = json.loads((place.version("pipeline") / "version.json").read_text())
    redescribe(place.version("pipeline"), sampling={**described["sampling"], "steps": 1})
    refused(place, "pipeline", "is served otherwise than the bundle that was signed")


def test_an_engine_of_another_bundle_does_not_go_with_a_signed_pipeline(place: Place, shippable: Path, tmp_path: Path) -> None:
    ship(shippable, tmp_path / "unsigned")
    shutil.rmtree(place.version("unet"))
    shutil.copytree(tmp_path / "unsigned" / "unet" / "1", place.version("unet"))
    with ExitStack() as stack, pytest.raises(BundleError, match="is not of the bundle that the pipeline is of"):
        open_painter(place.repository, stack)


def test_new_masks_come_with_their_own_signature(place: Place, tmp_path: Path) -> None:
    def silence_others(staged: Path) -> None:
        found = NeuronSet.load(staged / "neurons.json")
        NeuronSet.empty(found.layers).others(found.total // 2, seed=1).save(staged / "neurons.json")
        (staged / "policies.json").unlink()

    amend(place.bundle, open_bundle(place.bundle), silence_others)
    pass_gates(place.bundle)
    with pytest.raises(InputError, match="asks for signatures: say whose the bundle has, with --public-key"):
        ship_masks(place.bundle, place.repository)
    with pytest.raises(BundleError, match="is not signed"):
        ship_masks(place.bundle, place.repository, trust=place.trust)
    sign(place.bundle, Signer(key=place.key))
    shipped = ship_masks(place.bundle, place.repository, trust=place.trust)
    with ExitStack() as stack:
        painter = open_painter(place.repository, stack)
        assert painter.policies().version == shipped.policies
        update = place.version("pipeline") / "policies" / "2.json"
        masked_policies(NeuronSet.empty(NeuronSet.load(place.bundle / "neurons.json").layers)).save(update)
        assert painter.policies().version == shipped.policies  # nobody signed the newer one


def test_policies_of_another_model_are_not_in_force_although_they_are_signed(place: Place) -> None:
    def exchange(staged: Path) -> None:
        weights = staged / "unet_masked" / "model.onnx.data"
        content = bytes(weights.stat().st_size)
        weights.unlink()
        weights.write_bytes(content)

    amend(place.bundle, open_bundle(place.bundle), exchange)
    sign(place.bundle, Signer(key=place.key))
    files, told = open_bundle(place.bundle).files, list[str]()
    origin = partial(copy_origin, place.bundle, names=origin_of(files, policies=True))
    put_policies(place.version("pipeline"), read_policies(place.bundle, files, sha256_file(place.bundle / MANIFEST)), origin)
    found = PoliciesInForce(place.version("pipeline"), told.append, place.trust)()
    assert found == Policies.load(place.version("pipeline") / "policies.json")
    assert [line.count("is of a bundle with another masked engine") for line in told] == [1]


def test_masks_that_were_passed_over_are_tried_again_with_a_new_list_and_those_in_force_stay(place: Place, tmp_path: Path) -> None:
    told, revoked = list[str](), place.trust.files[-1]
    in_force = PoliciesInForce(place.version("pipeline"), told.append, place.trust)
    assert in_force() == Policies.load(place.version("pipeline") / "policies.json")
    ship_masks(place.bundle, place.repository, trust=place.trust)
    revoked.rename(tmp_path / "away")
    own = in_force()
    assert len(told) == 1
    assert "does not exist" in told[0]
    assert in_force() is own  # and nothing is read
    (tmp_path / "away").rename(revoked)
    update = in_force()
    assert (update, update is own, len(told)) == (Policies.load(place.version("pipeline") / "policies" / "1.json"), False, 1)
    revoked.unlink()
    assert in_force() is update


def test_what_is_asked_of_a_bundle_is_asked_of_one_manifest(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, found = read_meant(place.bundle, None, place.trust)
    assert (manifest, found) == (open_bundle(place.bundle), sha256_file(place.bundle / MANIFEST))

    def exchanged(bundle: Path, names: object = None) -> object:
        if names is None:
            (bundle / MANIFEST).write_text((bundle / MANIFEST).read_text() + " ")
        return verify(bundle, names)  # type: ignore[arg-type]

    monkeypatch.setattr("nemo_edge.serving.signed.verify", exchanged)
    for trust in (place.trust, None):
        with pytest.raises(BundleError, match="was built again meanwhile: run the same command once more; nothing was shipped"):
            ship(place.bundle, tmp_path / "other", trust=trust)
        sign(place.bundle, Signer(key=place.key))
    assert not (tmp_path / "other").exists()


def test_signed_and_unsigned_do_not_mix(place: Place, shippable: Path, tmp_path: Path) -> None:
    ship(shippable, tmp_path / "unsigned")
    with pytest.raises(InputError, match=r"asks for a signature \(--require-signature\), and versions of a model are asked for alike"):
        ship(place.bundle, place.repository)
    with pytest.raises(InputError, match="asks for no signature, and versions of a model are asked for alike"):
        ship(place.bundle, tmp_path / "unsigned", trust=place.trust)
    with pytest.raises(InputError, match="asks for no signature, and so not for that of new neurons"):
        ship_masks(place.bundle, tmp_path / "unsigned", trust=place.trust)
    assert not (tmp_path / "unsigned" / "pipeline" / "1" / "policies").exists()


def test_a_backend_that_asks_nobody_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Triton's own onnxruntime opens an engine and asks for no signature: ship with --backend python"):
        ship(place.bundle, tmp_path / "other", "native", trust=place.trust)
    assert not (tmp_path / "other").exists()


def test_an_unsigned_bundle_and_another_than_the_expected_one_are_not_shipped(place: Place, shippable: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not signed \(it has no manifest.sig\)"):
        ship(shippable, tmp_path / "other", trust=place.trust)
    with pytest.raises(BundleError, match="is not the bundle that was expected"):
        ship(shippable, tmp_path / "other", expect="0" * 64)
    assert not (tmp_path / "other").exists()
    assert ship(shippable, tmp_path / "other", expect=identity_of(str(shippable))).signed is False


def test_keys_and_list_may_be_elsewhere_on_the_server(place: Place, tmp_path: Path) -> None:
    ship(place.bundle, tmp_path / "other", trust=place.trust, trusted_at=tmp_path / "etc")
    version = tmp_path / "other" / "unet" / "1"
    with pytest.raises(TritonModelException, match=rf"key {tmp_path}/etc/key.pub does not exist"), served(version):
        pass
    (tmp_path / "etc").mkdir()
    for path in (place.trust.public_key, place.trust.revocations):
        shutil.copy(path, tmp_path / "etc")  # type: ignore[arg-type]
    with served(version):
        pass


@pytest.mark.triton
def test_a_real_server_asks_for_the_signature_and_refuses_a_revoked_bundle(
    place: Place, triton_environment: Environment, golden: Golden
) -> None:
    with serve(place.repository, triton_environment, lambda server: check_golden(golden, server.grpc)) as server:
        assert place.trust.revocations is not None
        revoke(place.trust.revocations, [identity_of(str(place.bundle))], Signer(key=place.key), "a memory was found")
        server.post("v2/repository/models/unet/unload")
        with pytest.raises(Exception, match=r"a memory was found") as refused:
            server.post("v2/repository/models/unet/load")
        assert "Traceback" not in str(refused.value)
