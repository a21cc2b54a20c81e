"""A served model as a runner: what it sends, what it refuses, and the same answers as in this process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nemo_edge.backends import onnxruntime
from nemo_edge.backends.tensorrt.plans import Tensor
from nemo_edge.backends.triton import Signature, TritonRunner, open_runner
from nemo_edge.serving.server import Server
from nemo_edge.system.errors import InputError, MissingDependency

Arrays = Mapping[str, np.ndarray]


def signature(batch: int | str = "batch", rows: int = 4) -> Signature:
    inputs = {"x": Tensor(dtype="float16", dims=(batch, 3)), "t": Tensor(dtype="float16", dims=(batch,))}
    return Signature(inputs=inputs, outputs={"y": Tensor(dtype="float16", dims=(batch, 3))}, rows=rows)


class Doubling:
    """A model in this process that gives twice its `x`, in fp16, and keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[Arrays] = []

    def __call__(self, arrays: Arrays) -> Arrays:
        self.sent.append(arrays)
        return {"y": arrays["x"] * 2}


def feed(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(rows * 3, dtype=np.float32).reshape(rows, 3), "t": np.ones(rows, np.float32)}


def test_floats_are_cast_both_ways_and_one_number_a_row_has_a_rank() -> None:
    model = Doubling()
    answer = TritonRunner(signature(), model)(feed(2))["y"]
    assert answer.dtype == np.float32
    assert np.array_equal(answer, feed(2)["x"] * 2)
    assert {name: (array.dtype.name, array.shape) for name, array in model.sent[0].items()} == {
        "x": ("float16", (2, 3)),
        "t": ("float16", (2, 1)),
    }


def test_more_rows_than_the_model_takes_go_in_several_requests() -> None:
    model = Doubling()
    assert np.array_equal(TritonRunner(signature(rows=4), model)(feed(10))["y"], feed(10)["x"] * 2)
    assert [len(arrays["x"]) for arrays in model.sent] == [4, 4, 2]


def test_a_pinned_batch_is_filled_up() -> None:
    model = Doubling()
    assert np.array_equal(TritonRunner(signature(2, 2), model)(feed(3))["y"], feed(3)["x"] * 2)
    assert [(arrays["x"].shape, arrays["t"].shape) for arrays in model.sent] == [((2, 3), (2,))] * 2


def test_a_feed_that_does_not_fit_is_not_sent() -> None:
    model = Doubling()
    with pytest.raises(InputError, match="'x' has shape"):
        TritonRunner(signature(), model)({**feed(2), "x": np.zeros((2, 4), np.float32)})
    assert model.sent == []


def test_a_server_that_is_not_there_is_a_missing_dependency() -> None:
    pytest.importorskip("tritonclient.grpc")
    with pytest.raises(MissingDependency, match=r"no server answers at 127\.0\.0\.1:9: start one"):
        open_runner("127.0.0.1:9", "unet")


@pytest.mark.triton
@pytest.mark.parametrize("component", ["text_encoder", "vae_decoder"])
def test_a_served_component_answers_as_it_does_here(triton: Server, shippable: Path, component: str) -> None:
    rng = np.random.default_rng(0)
    with onnxruntime.open_runner(shippable / component / "model.onnx") as own, open_runner(triton.grpc, component, version=1) as served:
        assert served.inputs.keys() == own.inputs.keys()
        sizes = {name: [d if isinstance(d, int) else 16 for d in dims[1:]] for name, dims in own.inputs.items()}
        given: dict[str, np.ndarray] = {
            name: rng.integers(0, 90, (3, *size)) if name == "input_ids" else rng.standard_normal((3, *size), np.float32)
            for name, size in sizes.items()
        }
        expected = own(given)
        found = served(given)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], array, atol=1e-5)


@pytest.mark.triton
def test_a_model_that_is_not_there_is_refused(triton: Server) -> None:
    for name, version in (("unet", 99), ("nobody", None)):
        with pytest.raises(InputError, match=f"{name} at {triton.grpc}: "):
            open_runner(triton.grpc, name, version)


@pytest.mark.triton
def test_what_the_server_refuses_is_an_input_error(triton: Server) -> None:
    with open_runner(triton.grpc, "unet") as unet:
        sizes = {name: [d if isinstance(d, int) else 15 for d in dims[1:]] for name, dims in unet.inputs.items()}
        with pytest.raises(InputError, match=r"unet at .*: .*ONNX Runtime cannot run a feed of sample \[1, 4, 15, 15\]"):
            unet({name: np.zeros((1, *size), np.float32) for name, size in sizes.items()})


TESTS = Path(__file__).parents[1]
MLSERVER = TESTS.parent / ".venv-mlserver" / "bin" / "mlserver"
LOOPBACK = "127.0.0.1"


def declared(dims: tuple[int | str | None, ...]) -> list[int]:
    return [dim if isinstance(dim, int) else -1 for dim in dims]


@pytest.fixture(scope="module")
def mlserver(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The gRPC address of an MLServer on the loopback with the masked UNet, and with one that declares nothing of itself."""
    client = pytest.importorskip("tritonclient.grpc")
    if not MLSERVER.is_file():
        pytest.skip("MLServer needs an environment of its own: make mlserver")
    folder = tmp_path_factory.mktemp("mlserver")
    model = tiny_bundle / "unet_masked" / "model.onnx"
    with onnxruntime.open_runner(model) as own:
        inputs = [{"name": name, "datatype": "FP32", "shape": declared(dims)} for name, dims in own.inputs.items()]
    ports = {"inputs": inputs, "outputs": [{"name": "out_sample", "datatype": "FP32", "shape": [-1, 4, -1, -1]}]}
    settings = {"implementation": "mlserver_unet.UNet", "parameters": {"uri": str(model)}}
    for name, more in (("unet", ports), ("silent", {})):
        (folder / name).mkdir()
        (folder / name / "model-settings.json").write_text(json.dumps({"name": name, **settings, **more}))
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        for each in (first, second, third):
            each.bind((LOOPBACK, 0))
        http, grpc, metrics = (each.getsockname()[1] for each in (first, second, third))
    own_settings = {"host": LOOPBACK, "http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0}
    (folder / "settings.json").write_text(json.dumps({**own_settings, "debug": False, "metrics_dir": str(folder)}))
    variables = {**os.environ, "PYTHONPATH": str(TESTS)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([MLSERVER, "start", folder], stdout=log, stderr=subprocess.STDOUT, env=variables, cwd=folder)
    try:
        wait_until_ready(client, f"{LOOPBACK}:{grpc}", process, folder / "log")
        yield f"{LOOPBACK}:{grpc}"
    finally:
        process.terminate()
        process.wait(60)


def wait_until_ready(client: Any, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 180
    with client.InferenceServerClient(url) as connection:
        while True:
            try:
                if connection.is_model_ready("unet") and connection.is_model_ready("silent"):
                    return
            except client.InferenceServerException:
                pass
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.1)


@pytest.mark.mlserver
def test_another_server_of_the_protocol_answers_as_it_is_done_here(mlserver: str, tiny_bundle: Path) -> None:
    """MLServer has no configuration of a model, no repository of Triton's and no batching of its own."""
    rng = np.random.default_rng(0)
    with onnxruntime.open_runner(tiny_bundle / "unet_masked" / "model.onnx") as own, open_runner(mlserver, "unet") as served:
        assert served.inputs.keys() == own.inputs.keys()
        sizes = {name: [d if isinstance(d, int) else 16 for d in dims[1:]] for name, dims in own.inputs.items()}
        given = {name: rng.standard_normal((3, *size), np.float32) for name, size in sizes.items()}
        given["value_mask"] = rng.integers(0, 2, given["value_mask"].shape).astype(np.float32)
        found, expected = served(given)["out_sample"], own(given)["out_sample"]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        kept = served({**given, "value_mask": np.ones_like(given["value_mask"])})["out_sample"]
        assert np.abs(kept - expected).max() > 1e-4


@pytest.mark.mlserver
def test_what_another_server_refuses_is_an_input_error_and_it_lives_on(mlserver: str) -> None:
    with open_runner(mlserver, "unet") as served:
        sizes = {name: [d if isinstance(d, int) else 15 for d in dims[1:]] for name, dims in served.inputs.items()}
        feed = {name: np.zeros((1, *size), np.float32) for name, size in sizes.items()}
        with pytest.raises(InputError, match=r"unet at .*: .*ONNX Runtime cannot run a feed of sample \[1, 4, 15, 15\]"):
            served(feed)
        assert served({**feed, "sample": np.zeros((1, 4, 16, 16), np.float32)})["out_sample"].shape == (1, 4, 16, 16)
    with pytest.raises(InputError, match="nobody at "):
        open_runner(mlserver, "nobody")


@pytest.mark.mlserver
def test_a_model_that_declares_nothing_is_refused_with_the_remedy(mlserver: str) -> None:
    with pytest.raises(InputError, match=r"silent at .* does not say what it takes and gives: declare its inputs and outputs"):
        open_runner(mlserver, "silent")
