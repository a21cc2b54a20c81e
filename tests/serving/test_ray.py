"""A repository on a local Ray: the library's pictures, refusals a client can act on, and policies as in a server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc")
pytest.importorskip("ray.serve", reason="Ray Serve is not here: pip install 'nemo-edge[ray]'")

import ray
from ray import serve
from served import LOCAL_RAY

from nemo_edge.bundle.policies import masked_policies
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.serving.audit.base import AuditSettings
from nemo_edge.serving.audit.campaign import audit
from nemo_edge.serving.golden import LEVELS, Golden
from nemo_edge.serving.ray import app
from nemo_edge.serving.remotes.opening import Address
from nemo_edge.serving.repository import ship
from nemo_edge.serving.updates import put_policies
from nemo_edge.system.errors import InputError

LOOPBACK = LOCAL_RAY["_node_ip_address"]


@dataclass(frozen=True)
class Service:
    url: str
    repository: Path


@pytest.fixture(scope="module")
def service(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A repository on a Ray of its own, of one core, on the loopback."""
    repository = tmp_path_factory.mktemp("ray") / "repository"
    ship(shippable, repository)
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patience:
        patience.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "45")  # beside other tests, its start takes longer than the 5 s it has
        ray.init(num_cpus=1, num_gpus=0, object_store_memory=80 << 20, **LOCAL_RAY)
        try:
            serve.start(http_options={"host": LOOPBACK, "port": port})
            serve.run(app({"repository": str(repository)}))
            yield Service(f"http://{LOOPBACK}:{port}/", repository)
        finally:
            with suppress(Exception):  # whatever it says, Ray ends
                serve.shutdown()
            ray.shutdown()


def post(service: Service, content: bytes) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(service.url, content), timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def picture(service: Service, **values: Any) -> np.ndarray:
    status, content = post(service, json.dumps(values).encode())
    assert status == 200, content
    return np.asarray(Image.open(BytesIO(content))).astype(int)


def asked(golden: Golden) -> dict[str, Any]:
    return {name: value.decode() if isinstance(value, bytes) else value.item() for name, (value,) in golden.tensors.items()}


def test_the_picture_is_the_library_s(service: Service, golden: Golden) -> None:
    assert np.abs(picture(service, **asked(golden)) - golden.picture[0]).max() <= LEVELS
    assert np.abs(picture(service, **{**asked(golden), "seed": 1}) - golden.picture[0]).max() > 10
    assert np.abs(picture(service, **asked(golden), policy="off") - golden.picture[0]).max() > LEVELS


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "the request cannot be read: Invalid JSON"),
        (b'{"prompt": "a secret pig", "steps": 0}', "steps 0: input should be greater than or equal to 1"),
        (b'{"prompt": "a secret pig", "policy": "nobody"}', "unknown policy 'nobody': this pipeline has always, off"),
    ],
)
def test_a_bad_request_is_refused_and_the_next_is_answered(service: Service, golden: Golden, content: bytes, said: str) -> None:
    status, answer = post(service, content)
    assert status == 400
    assert said in answer.decode()
    assert b"secret" not in answer
    assert np.abs(picture(service, **asked(golden)) - golden.picture[0]).max() <= LEVELS


def test_it_is_audited_from_outside(service: Service, golden: Golden, tmp_path: Path) -> None:
    """A training picture is one that it draws for a prompt: that prompt gives it back, and a list of others does not."""
    prompt, settings = asked(golden)["prompt"], AuditSettings(seeds=2, text=(), threshold=0.02)
    Image.fromarray(picture(service, prompt=prompt, seed=1).astype(np.uint8)).save(tmp_path / "known.png")
    Image.fromarray(picture(service, prompt="an owl", seed=0).astype(np.uint8)).rotate(180).save(tmp_path / "other.png")
    (tmp_path / "list.csv").write_text(f"Caption;image\n{prompt};known.png\nsomething else;other.png\n")
    found = audit(Address(service.url), tmp_path / "list.csv", settings, tmp_path / "audit.json")
    assert [(giver.prompt, giver.own, giver.nearest < 0.01) for giver in found.givers] == [(prompt, (1, 2), True)]
    assert (found.remote.kind, found.remote.address, found.remote.model) == ("ray", service.url, "default")


def test_policies_that_come_later_are_in_force_with_the_next_picture(service: Service, shippable: Path, golden: Golden) -> None:
    """The last of this service's tests."""
    free = picture(service, **asked(golden), policy="off")
    none = NeuronSet.empty(NeuronSet.load(shippable / "neurons.json").layers)
    put_policies(service.repository / "pipeline" / "1", masked_policies(none))
    assert np.array_equal(picture(service, **asked(golden)), free)


def test_any_other_argument_is_refused() -> None:
    with pytest.raises(InputError, match="Ray was given bundle: give repository=FOLDER, which"):
        app({"bundle": "/srv/bundle"})


def test_without_ray_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['ray'] = None; import nemo_edge.serving.ray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1] == "nemo_edge.system.errors.MissingDependency: Ray Serve is not here: `pip install 'nemo-edge[ray]'`"
    )
