"""A served model as a runner: what it sends, what it refuses, and the same answers as in this process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from nemo_edge.backends import onnxruntime
from nemo_edge.backends.triton import Signature, TritonRunner, open_runner
from nemo_edge.errors import InputError, MissingDependency
from nemo_edge.plans import Tensor
from nemo_edge.serving.server import Server

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
