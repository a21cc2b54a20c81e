"""A shipment of some policies alone: the pipeline opens its components itself, and whoever asks for anything else is refused."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")

from backendutils import TritonModelException, served

from nemo_edge.bundle.policies import Policies
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.serving.golden import LEVELS, Golden, ask, check_golden, request
from nemo_edge.serving.hotupdate import ship_masks
from nemo_edge.serving.kserve import Placement, describe_service
from nemo_edge.serving.local import open_painter
from nemo_edge.serving.modelconfig import read_config
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Environment, serve
from nemo_edge.system.errors import InputError, NemoEdgeError


@pytest.fixture(scope="module")
def restricted(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("restricted") / "repository"
    shipped = ship(shippable, repository, policies=["always", "triggered"], instances=1)
    assert shipped.models == ("pipeline",)
    return repository


def levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def test_the_repository_has_no_model_that_takes_a_mask(restricted: Path) -> None:
    assert [path.parent.name for path in restricted.glob("*/config.pbtxt")] == ["pipeline"]
    assert not [port.name for port in read_config(restricted / "pipeline" / "config.pbtxt").input if "mask" in port.name]
    assert {p.name for p in (restricted / "pipeline" / "1" / "components").iterdir()} == {"text_encoder", "vae_decoder", "unet"}
    assert not [*(restricted / "pipeline" / "1" / "components").rglob("model.py")]


def test_its_pictures_are_the_library_s_and_other_policies_are_refused(restricted: Path, golden: Golden) -> None:
    with ExitStack() as stack:
        painter = open_painter(restricted, stack)
        assert levels(painter.paint(golden.tensors).pictures, golden.picture) <= LEVELS
        assert painter.paint({**golden.tensors, **request(policy="triggered")}).policy == "triggered"
        for policy in ("off", "cluster:a-red-pig", "always,off", "nobody"):
            with pytest.raises(InputError, match=rf"policy '{policy}' is not offered: this pipeline has always, triggered$"):
                painter.paint({**golden.tensors, **request(policy=policy)})


def test_the_served_class_opens_the_components_and_closes_them(restricted: Path, tmp_path: Path) -> None:
    with served(restricted / "pipeline" / "1") as opened:
        assert opened._painter.version.inside
    folder = shutil.copytree(restricted, tmp_path / "repository")
    graph = folder / "pipeline" / "1" / "components" / "unet" / "model.onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(TritonModelException, match="components/unet was changed since it was shipped"), served(folder / "pipeline" / "1"):
        pass


def test_a_request_that_names_no_policy_gets_the_first_where_always_is_not_offered(shippable: Path, tmp_path: Path, golden: Golden) -> None:
    ship(shippable, tmp_path / "repository", policies=["cluster:a-red-pig", "triggered"])
    with ExitStack() as stack:
        painter = open_painter(tmp_path / "repository", stack)
        assert painter.paint(golden.tensors).policy == "cluster:a-red-pig"
        with pytest.raises(InputError, match=r"policy 'always' is not offered: this pipeline has triggered, 1 of its clusters$"):
            painter.paint({**golden.tensors, **request(policy="always")})


def test_new_masks_are_in_force_and_offer_nothing_more(restricted: Path, shippable: Path, tmp_path: Path, golden: Golden) -> None:
    folder = shutil.copytree(restricted, tmp_path / "repository")
    with ExitStack() as stack:
        painter = open_painter(folder, stack)
        assert ship_masks(shippable, folder).update == 1
        assert painter.policies().offered == ("always", "triggered")
        with pytest.raises(InputError, match="is not offered"):
            painter.paint({**golden.tensors, **request(policy="off")})


def test_what_cannot_be_kept_is_refused_and_nothing_is_written(restricted: Path, shippable: Path, tmp_path: Path) -> None:
    place = tmp_path / "repository"
    with pytest.raises(InputError, match="unknown policy 'nobody'"):
        ship(shippable, place, policies=["always", "nobody"])
    with pytest.raises(InputError, match="no policy is offered: name one"):
        ship(shippable, place, policies=[])
    with pytest.raises(InputError, match=r"unknown policy 'triggered'.*since its neurons are baked"):
        ship(shippable, place, policies=["triggered"], variant="baked")
    with pytest.raises(InputError, match="serves each component to whoever calls it: with --policies take --backend python"):
        ship(shippable, place, "native", policies=["always"])
    assert not place.exists()


def test_components_are_not_served_again_nor_hidden_while_they_are(restricted: Path, shippable: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(restricted, tmp_path / "repository")
    with pytest.raises(InputError, match="pipeline was shipped with --policies: say again which its server is to know"):
        ship(shippable, folder)
    assert ship(shippable, folder, policies=["always"]).version == 2
    ship(shippable, tmp_path / "open")
    with pytest.raises(InputError, match=r"text_encoder is served to whoever calls it, and --policies would not keep it from that"):
        ship(shippable, tmp_path / "open", policies=["always"])


def test_a_service_of_it_is_described(restricted: Path) -> None:
    place = Placement(name="sd", storage="s3://models/sd", image="registry.example/triton:1")
    assert describe_service(restricted, place)["metadata"]["annotations"]["nemo-edge/version"] == "1"


def test_the_policies_that_are_offered_are_in_the_file(restricted: Path, shippable: Path) -> None:
    found = Policies.load(restricted / "pipeline" / "1" / "policies.json")
    assert found.offered == ("always", "triggered")
    assert found.neurons["always"] == NeuronSet.load(shippable / "neurons.json")


@pytest.mark.triton
def test_a_real_server_has_the_pipeline_alone(triton_environment: Environment, restricted: Path, golden: Golden) -> None:
    with serve(restricted, triton_environment, lambda server: check_golden(golden, server.grpc)) as server:
        assert {entry["name"] for entry in server.post("v2/repository/index")} == {"pipeline"}
        with pytest.raises(NemoEdgeError, match="policy 'off' is not offered: this pipeline has always, triggered"):
            ask(server.grpc, {**golden.tensors, **request(policy="off")})
