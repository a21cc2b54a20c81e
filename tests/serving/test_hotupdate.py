"""New neurons for engines that are served: from the next request on, without a load, and back again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")

from served import logged, metrics, pass_gates, under_load, wait_for, with_cluster, with_other_neurons
from test_imports import HEAVY

from nemo_edge.bundle.manifest import amend, open_bundle
from nemo_edge.bundle.policies import Policies
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.serving.golden import LEVELS, Golden, ask, check_golden, make_golden, request
from nemo_edge.serving.hotupdate import ship_masks
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Environment, Server, serve
from nemo_edge.system.errors import BundleError, InputError, NemoEdgeError
from nemo_edge.system.files import sha256_file


@pytest.fixture(scope="module")
def other(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_other_neurons(shippable, tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def served_repository(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "repository"
    ship(shippable, folder)
    return folder


@pytest.fixture
def repository(served_repository: Path, tmp_path: Path) -> Path:
    return shutil.copytree(served_repository, tmp_path / "repository")


@pytest.fixture(scope="module")
def server(triton_environment: Environment, served_repository: Path, golden: Golden) -> Iterator[Server]:
    """A server of its own, whose policies these tests change, in their order."""
    with serve(served_repository, triton_environment, lambda started: check_golden(golden, started.grpc)) as started:
        yield started


def tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


def levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def test_only_policies_are_put_there(repository: Path, other: Path) -> None:
    before = tree(repository)
    shipped = ship_masks(other, repository)
    found = NeuronSet.load(other / "neurons.json")
    assert (shipped.version, shipped.update, shipped.neurons) == (1, 1, len(found))
    after = tree(repository)
    assert after.keys() - before.keys() == {"pipeline/1/policies/1.json"}
    assert before.items() <= after.items()
    policies = Policies.load(repository / "pipeline" / "1" / "policies" / "1.json")
    assert (policies.version, policies.manifest) == (shipped.policies, sha256_file(other / "manifest.json"))
    assert policies.neurons["always"] == found
    assert ship_masks(other, repository).update == 2


def test_they_go_to_the_newest_pipeline(repository: Path, shippable: Path, other: Path) -> None:
    ship_masks(other, repository)
    ship(shippable, repository)
    assert (ship_masks(other, repository).version, ship_masks(other, repository).update) == (2, 2)


def test_a_bundle_that_must_not_be_shipped_is_refused(repository: Path, shippable: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    before = tree(repository)
    with pytest.raises(BundleError, match="failed a gate"):
        ship_masks(tiny_bundle, repository)
    changed = shutil.copytree(shippable, tmp_path / "bundle")
    (changed / "neurons.json").write_text((changed / "neurons.json").read_text() + " ")
    with pytest.raises(BundleError, match=r"was changed since it was built \(neurons.json.*\): build it again; nothing was shipped"):
        ship_masks(changed, repository)
    assert tree(repository) == before


def test_a_repository_without_the_bundle_s_masked_engine_is_refused(repository: Path, shippable: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no pipeline that nemo-edge shipped: make it with `nemo-edge ship BUNDLE --to"):
        ship_masks(shippable, tmp_path / "nothing")
    ship(shippable, tmp_path / "baked", variant="baked")
    with pytest.raises(InputError, match="is baked, and takes no mask"):
        ship_masks(shippable, tmp_path / "baked")
    rebuilt = shutil.copytree(shippable, tmp_path / "rebuilt")
    weights = bytearray((rebuilt / "unet_masked" / "model.onnx.data").read_bytes())
    weights[-1] ^= 1

    def change(staged: Path) -> None:
        (staged / "unet_masked" / "model.onnx.data").unlink()
        (staged / "unet_masked" / "model.onnx.data").write_bytes(weights)

    amend(rebuilt, open_bundle(rebuilt), change)
    before = tree(repository)
    with pytest.raises(InputError, match=r"is not the masked engine of .*rebuilt: ship the bundle without --masks-only"):
        ship_masks(pass_gates(rebuilt), repository)
    assert tree(repository) == before


def test_nothing_heavy_is_imported_while_a_leak_waits() -> None:
    code = "import nemo_edge.serving.hotupdate, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {*HEAVY, "tritonclient"} & {*loaded}


@pytest.mark.triton
def test_new_neurons_are_silenced_under_load_and_no_request_fails(
    server: Server, served_repository: Path, golden: Golden, other: Path
) -> None:
    new = make_golden(other)
    assert levels(golden.picture, new.picture) > LEVELS

    def change() -> None:
        ship_masks(other, served_repository)
        assert levels(ask(server.grpc, request(prompt="a red pig"))["image"], new.picture) <= LEVELS  # the very next one

    pictures = under_load(server, change)
    own = [min((levels(picture, each.picture), name) for name, each in (("old", golden), ("new", new))) for picture in pictures]
    assert max(off for off, _ in own) <= LEVELS
    assert {name for _, name in own} == {"old", "new"}


@pytest.mark.triton
def test_the_log_and_the_metrics_name_the_policies_that_were_applied(server: Server, served_repository: Path) -> None:
    ask(server.grpc, request(prompt="a red pig", seed=43))
    version = Policies.load(served_repository / "pipeline" / "1" / "policies" / "1.json").version
    assert logged(server, event="drawn", seeds=[43])["policies"] == version
    assert f'policies="{version}"' in metrics(server)


@pytest.mark.triton
def test_policies_that_cannot_be_used_change_nothing_and_are_logged(server: Server, served_repository: Path, other: Path) -> None:
    (served_repository / "pipeline" / "1" / "policies" / "2.json").write_text("{")
    new = make_golden(other)
    assert levels(ask(server.grpc, request(prompt="a red pig"))["image"], new.picture) <= LEVELS
    wait_for(server, "2.json does not hold policies: ship the bundle again; it is passed over")


@pytest.mark.triton
def test_the_former_neurons_are_back_when_their_bundle_is_shipped_again(
    server: Server, served_repository: Path, shippable: Path, golden: Golden
) -> None:
    assert ship_masks(shippable, served_repository).update == 3
    check_golden(golden, server.grpc)


@pytest.mark.triton
def test_the_former_policies_are_back_when_the_newest_are_taken_away(
    server: Server, served_repository: Path, golden: Golden, other: Path
) -> None:
    """The bad file of the test before the last is passed over again."""
    (served_repository / "pipeline" / "1" / "policies" / "3.json").unlink()
    check_golden(make_golden(other), server.grpc)
    (served_repository / "pipeline" / "1" / "policies" / "1.json").unlink()
    check_golden(golden, server.grpc)


@pytest.mark.triton
def test_a_cluster_found_later_can_be_asked_for_and_triggers(
    server: Server, served_repository: Path, other: Path, tiny_recipe: Path, tmp_path: Path
) -> None:
    """A memory that the bundle was built without. The last of this server's tests: its policies are others afterwards."""
    with pytest.raises(NemoEdgeError, match="unknown policy 'cluster:found-later'"):
        ask(server.grpc, request(prompt="a dog", policy="cluster:found-later"))
    checkpoint = open_checkpoint(str(tiny_recipe.parent / "model"))
    states = checkpoint.encode(["a dog", "a cat", "a red pig"])["encoder_hidden_states"].numpy()
    ship_masks(with_cluster(other, tmp_path, "found-later", states), served_repository)
    off, cluster, triggered = (ask(server.grpc, request(prompt="a dog", policy=n)) for n in ("off", "cluster:found-later", "triggered"))
    assert levels(cluster["image"], off["image"]) > LEVELS
    assert np.array_equal(triggered["image"], cluster["image"])
    assert triggered["score"][0] > 0.999
    free = [ask(server.grpc, request(prompt="a cat", policy=name))["image"] for name in ("triggered", "off")]
    assert np.array_equal(*free)


@pytest.mark.triton
def test_a_server_that_starts_later_has_the_update_too(
    triton_environment: Environment, repository: Path, other: Path, golden: Golden
) -> None:
    ship_masks(other, repository)
    new = make_golden(other)
    with serve(repository, triton_environment, lambda started: check_golden(new, started.grpc)) as started:
        assert levels(ask(started.grpc, golden.tensors)["image"], golden.picture) > LEVELS
