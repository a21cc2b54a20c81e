"""A real Triton server: it takes up a new version under load, goes on with the old one where the new is broken, and is drained."""

from __future__ import annotations

import shutil
import subprocess
import time
import venv
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")

import tritonclient.grpc as grpc
from served import under_load, with_other_neurons

import nemo_edge
from nemo_edge.serving.golden import LEVELS, Golden, ask, check_golden, make_golden, request
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Environment, Server, find_environment, serve
from nemo_edge.system.errors import MissingDependency, NemoEdgeError


def levels(a: np.ndarray, b: np.ndarray) -> int:
    return int(np.abs(a.astype(int) - b).max())


def test_an_environment_without_a_server_says_how_it_is_made(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match="has no Triton server: `make triton` makes it"):
        find_environment(tmp_path)
    venv.create(tmp_path / "empty", symlinks=True)
    with pytest.raises(MissingDependency, match="empty has no Triton server: `make triton` makes it"):
        find_environment(tmp_path / "empty")


@pytest.mark.triton
def test_the_server_s_python_has_numpy_1_and_the_tests_own_nemo_edge(triton_environment: Environment) -> None:
    code = "import numpy, torch, onnxruntime, diffusers, transformers, nemo_edge; print(numpy.__version__, nemo_edge.__file__)"
    ran = subprocess.run([triton_environment.folder / "bin" / "python", "-c", code], cwd="/", capture_output=True, text=True, check=True)
    version, where = ran.stdout.split()
    assert version.startswith("1.")
    assert Path(where) == Path(nemo_edge.__file__)


@pytest.fixture(scope="module")
def other(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_other_neurons(shippable, tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def repository(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "repository"
    ship(shippable, folder)
    return folder


@pytest.fixture(scope="module")
def server(triton_environment: Environment, repository: Path, golden: Golden) -> Iterator[Server]:
    """A server of its own, whose models these tests change, in their order."""
    with serve(repository, triton_environment, lambda started: check_golden(golden, started.grpc)) as started:
        yield started


def calls(server: Server) -> int:
    """How often the UNet was called, in all its versions."""
    with grpc.InferenceServerClient(server.grpc) as client:
        return sum(model.inference_count for model in client.get_inference_statistics("unet").model_stats)


@pytest.mark.triton
def test_a_new_version_is_taken_up_under_load_and_every_picture_is_of_one_of_them(
    server: Server, repository: Path, golden: Golden, other: Path
) -> None:
    new = make_golden(other)
    assert levels(golden.picture, new.picture) > LEVELS
    shipped = ship(other, repository)
    pictures = under_load(server, lambda: server.load(shipped.models))
    own = [min((levels(picture, each.picture), version) for version, each in ((1, golden), (2, new))) for picture in pictures]
    assert max(off for off, _ in own) <= LEVELS
    assert {version for _, version in own} == {1, 2}
    check_golden(new, server.grpc)


@pytest.mark.triton
def test_a_broken_version_leaves_the_old_one_serving(server: Server, repository: Path, shippable: Path, other: Path) -> None:
    shipped = ship(shippable, repository)
    weights = repository / "unet" / str(shipped.version) / "model.onnx" / "model.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    new = make_golden(other)

    def load() -> None:
        with pytest.raises(NemoEdgeError, match=r"model\.onnx\.data was changed.*nothing was opened"):
            server.load(shipped.models)

    assert max(levels(picture, new.picture) for picture in under_load(server, load)) <= LEVELS


@pytest.mark.triton
def test_the_former_bundle_is_back_without_a_pause_once_it_is_shipped_again(
    server: Server, repository: Path, shippable: Path, golden: Golden, other: Path
) -> None:
    """As the README has it: the folders of the version that did not load are removed, and the former bundle gets a new number."""
    for broken in repository.glob("*/3"):
        shutil.rmtree(broken)
    shipped, new = ship(shippable, repository), make_golden(other)
    assert shipped.version == 4
    pictures = under_load(server, lambda: server.load(shipped.models))
    assert max(min(levels(picture, each.picture) for each in (golden, new)) for picture in pictures) <= LEVELS
    check_golden(golden, server.grpc)


@pytest.mark.triton
def test_what_was_begun_is_finished_when_the_server_is_drained(server: Server, golden: Golden) -> None:
    """The last of this server's tests: its pipeline is gone afterwards."""
    before = calls(server)
    with ThreadPoolExecutor(2) as pool:
        begun = [pool.submit(ask, server.grpc, request(prompt="a red pig", steps=200)) for _ in range(2)]
        while calls(server) < before + 8:
            time.sleep(0.01)
        server.drain()
        pictures = [each.result()["image"] for each in begun]
    assert [picture.shape for picture in pictures] == [golden.picture.shape] * 2
    with pytest.raises(NemoEdgeError, match=r"not ready|has no available versions|not found"):
        ask(server.grpc, golden.tensors)


@pytest.mark.triton
def test_a_repository_that_does_not_load_is_told_in_one_line(triton_environment: Environment, repository: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(repository, tmp_path / "repository")
    newest = max((broken / "unet").glob("[0-9]*"), key=lambda version: int(version.name))
    (newest / "model.py").write_text((newest / "model.py").read_text() + "# changed\n")
    why = rf"is not ready: failed to load 'unet' version {newest.name}: Internal: .*model.py was changed"
    with pytest.raises(NemoEdgeError, match=why) as refused:
        with serve(broken, triton_environment):
            pass
    assert "\n" not in str(refused.value)


@pytest.mark.triton
def test_a_server_that_draws_something_else_does_not_get_ready(triton_environment: Environment, repository: Path, golden: Golden) -> None:
    wrong = Golden(golden.tensors, 255 - golden.picture)
    ran: list[Server] = []

    def check(server: Server) -> None:
        ran.append(server)
        check_golden(wrong, server.grpc)

    with pytest.raises(NemoEdgeError, match="grey levels off the library's"):
        with serve(repository, triton_environment, check):
            raise AssertionError("it counts as ready")
    assert ran[0].process.poll() is not None


STALLED = """
import os, pathlib, signal, subprocess
import triton_python_backend_utils as pb

class TritonPythonModel:
    def initialize(self, args):
        starts = pathlib.Path(args["model_repository"]) / "starts"
        with starts.open("a") as file:
            file.write("x")
        if len(starts.read_text()) <= {stalled}:
            subprocess.Popen(["sh", "-c", f"sleep 5; kill -CONT {{os.getpid()}}"])
            os.kill(os.getpid(), signal.SIGSTOP)

    def execute(self, requests):
        return [pb.InferenceResponse([pb.Tensor("out", pb.get_input_tensor_by_name(r, "in").as_numpy())]) for r in requests]
"""
CONFIG = """
backend: "python"
input { name: "in" data_type: TYPE_FP32 dims: 1 }
output { name: "out" data_type: TYPE_FP32 dims: 1 }
instance_group { kind: KIND_CPU }
"""


def stalled(folder: Path, starts: int) -> Path:
    """A repository whose one model stands still for five seconds in so many first starts, as a process on a busy machine may."""
    (folder / "model" / "1").mkdir(parents=True)
    (folder / "model" / "1" / "model.py").write_text(STALLED.format(stalled=starts))
    (folder / "model" / "config.pbtxt").write_text(CONFIG)
    return folder


@pytest.mark.triton
def test_a_server_that_lost_a_model_while_it_loaded_is_started_again(triton_environment: Environment, tmp_path: Path) -> None:
    folder = stalled(tmp_path, 1)
    with serve(folder, triton_environment, timeout_s=20) as server, grpc.InferenceServerClient(server.grpc) as client:
        given = grpc.InferInput("in", [1], "FP32").set_data_from_numpy(np.float32([7]))
        assert client.infer("model", [given]).as_numpy("out").tolist() == [7]
    assert (folder / "model" / "starts").read_text() == "xx"


@pytest.mark.triton
def test_a_server_that_does_not_get_ready_however_often_it_is_started_is_told_in_one_line(
    triton_environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_edge.serving.server._STARTS", 2)
    folder = stalled(tmp_path, 9)
    with pytest.raises(NemoEdgeError, match="is not ready: it did not load its models in time") as refused:
        with serve(folder, triton_environment, timeout_s=8):
            pass
    assert "\n" not in str(refused.value)
    assert (folder / "model" / "starts").read_text() == "xx"
