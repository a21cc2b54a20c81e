"""A component on a real server: many clients, each with its own mask, and requests that are bad."""

from __future__ import annotations

import json
import resource
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")

import tritonclient.grpc as grpc
import tritonclient.http as http

from nemo_edge.backends import onnxruntime
from nemo_edge.backends.triton import TritonRunner, open_runner
from nemo_edge.serving.server import Server

pytestmark = pytest.mark.triton

CLIENTS, REQUESTS = 16, 1000
Feed = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def unet(triton: Server) -> Iterator[TritonRunner]:
    with open_runner(triton.grpc, "unet") as runner:
        yield runner


def make_feed(unet: TritonRunner, seed: int, rows: int = 1) -> Feed:
    rng = np.random.default_rng(seed)
    width, tokens = unet.inputs["value_mask"][1], unet.inputs["encoder_hidden_states"][1:]
    same = np.random.default_rng(0)  # the clients differ in their masks alone
    return {
        "sample": same.standard_normal((rows, 4, 16, 16), np.float32),
        "timestep": np.full(rows, 500, np.float32),
        "encoder_hidden_states": 30 * same.standard_normal((rows, *tokens), np.float32),
        "value_mask": (rng.random((rows, width)) < 0.5).astype(np.float32),
    }


def statistics(server: Server, model: str) -> dict[int, int]:
    """How many executions there were of each batch size, once it stays so: Triton counts one after its answer is there."""
    former: dict[int, int] | None = None
    with grpc.InferenceServerClient(server.grpc) as client:
        while True:
            (stats,) = client.get_inference_statistics(model).model_stats
            found = {batch.batch_size: batch.compute_infer.count for batch in stats.batch_stats}
            if found == former:
                return found
            former = found
            time.sleep(0.2)


def test_the_server_s_answers_are_the_engine_s(unet: TritonRunner, shippable: Path) -> None:
    with onnxruntime.open_runner(shippable / "unet_masked" / "model.onnx") as own:
        for rows in (1, 2, 5):
            feed = make_feed(unet, rows, rows)
            np.testing.assert_allclose(unet(feed)["out_sample"], own(feed)["out_sample"], atol=1e-5)


def errors_of_clients(server: Server, feeds: list[Feed], expected: list[np.ndarray], requests: int) -> list[float]:
    """The largest error of each client's answers, where each asks with a feed of its own and all at once."""
    start = threading.Barrier(len(feeds))

    def ask(client: int) -> float:
        with open_runner(server.grpc, "unet") as runner:
            start.wait()
            turns = range(client, requests, len(feeds))
            return max(float(np.abs(runner(feeds[client])["out_sample"] - expected[client]).max()) for _ in turns)

    with ThreadPoolExecutor(len(feeds)) as pool:
        return list(pool.map(ask, range(len(feeds))))


def test_sixteen_clients_with_a_mask_each_get_their_own_answers_and_batches_form(triton: Server, unet: TritonRunner) -> None:
    feeds = [make_feed(unet, seed) for seed in range(CLIENTS)]
    expected = [unet(feed)["out_sample"] for feed in feeds]
    apart = min(np.abs(a - b).max() for i, a in enumerate(expected) for b in expected[:i])
    before = statistics(triton, "unet")
    errors = errors_of_clients(triton, feeds, expected, REQUESTS)
    assert max(errors) <= 1e-5 < apart / 10, f"the answers of two masks are {apart} apart"
    counts = {size: count - before.get(size, 0) for size, count in statistics(triton, "unet").items()}
    assert sum(size * count for size, count in counts.items()) == REQUESTS
    assert sum(count for size, count in counts.items() if size > 1) > 0, counts


def resident_mib(server: Server) -> float:
    """The memory that the server and the processes of its models hold; they are a session of their own."""
    pages = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == server.process.pid:
                pages += int((process / "statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.slow
def test_ten_thousand_requests_lose_no_answer_and_no_memory(triton: Server, unet: TritonRunner) -> None:
    feeds = [make_feed(unet, seed) for seed in range(CLIENTS)]
    expected = [unet(feed)["out_sample"] for feed in feeds]
    assert max(errors_of_clients(triton, feeds, expected, 2000)) <= 1e-5
    before = resident_mib(triton)
    assert max(errors_of_clients(triton, feeds, expected, 8000)) <= 1e-5
    assert before > 100
    assert resident_mib(triton) <= 1.02 * before


def without(feed: Feed, name: str) -> Feed:
    return {n: array for n, array in feed.items() if n != name}


def with_nan(feed: Feed) -> Feed:
    mask = feed["value_mask"].copy()
    mask[0, -1] = np.nan
    return {**feed, "value_mask": mask}


BAD: dict[str, tuple[Callable[[Feed], Feed], str]] = {
    "a mask that is too narrow": (lambda f: {**f, "value_mask": f["value_mask"][:, 1:]}, "unexpected shape for input 'value_mask'"),
    "a mask with NaN": (with_nan, "value_mask must hold factors from 0 to 1, but has NaN or values outside"),
    "a mask of 2": (lambda f: {**f, "value_mask": f["value_mask"] + 2}, "value_mask must hold factors from 0 to 1, but has NaN"),
    "no mask": (lambda f: without(f, "value_mask"), "expected 4 inputs but got 3"),
    "two masks for a row": (lambda f: {**f, "value_mask": np.repeat(f["value_mask"], 2, axis=0)}, "batch size does not match other inputs"),
    "more rows than it takes": (lambda f: {n: np.repeat(a, 17, axis=0) for n, a in f.items()}, "batch-size must be <= 16"),
    "latents that the unet does not halve": (lambda f: {**f, "sample": f["sample"][..., :15, :15]}, "ONNX Runtime cannot run a feed"),
}


@pytest.mark.parametrize("library", [grpc, http], ids=["grpc", "http"])
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_gets_a_clear_error_and_the_server_lives_on(triton: Server, unet: TritonRunner, bad: str, library: object) -> None:
    change, said = BAD[bad]
    good = make_feed(unet, 3)
    client = library.InferenceServerClient(triton.grpc if library is grpc else triton.http)  # type: ignore[attr-defined]
    with client:
        arrays = change(unet.signature.request(good))
        inputs = [library.InferInput(n, list(a.shape), "FP32").set_data_from_numpy(a) for n, a in arrays.items()]  # type: ignore[attr-defined]
        with pytest.raises(Exception, match=said) as refused:
            client.infer("unet", inputs)
    assert type(refused.value).__name__ == "InferenceServerException"
    assert "Traceback" not in str(refused.value)
    assert np.isfinite(unet(good)["out_sample"]).all()


def test_a_bad_request_among_good_ones_fails_alone(triton: Server, unet: TritonRunner) -> None:
    good = make_feed(unet, 1)
    bad = with_nan(good)
    expected = unet(good)["out_sample"]

    def ask(client: int) -> list[str]:
        found = []
        with grpc.InferenceServerClient(triton.grpc) as connection:
            for _ in range(20):
                feed = unet.signature.request(bad if client == 0 else good)
                inputs = [grpc.InferInput(n, list(a.shape), "FP32").set_data_from_numpy(a) for n, a in feed.items()]
                try:
                    answer = connection.infer("unet", inputs).as_numpy("out_sample")
                    found.append("right" if np.abs(answer - expected).max() <= 1e-5 else "wrong")
                except grpc.InferenceServerException:
                    found.append("refused")
        return found

    with ThreadPoolExecutor(8) as pool:
        first, *others = pool.map(ask, range(8))
    assert set(first) == {"refused"}
    assert {outcome for found in others for outcome in found} == {"right"}


def test_json_over_http_is_answered_too(triton: Server, unet: TritonRunner) -> None:
    feed = make_feed(unet, 5)
    inputs = [
        {"name": n, "shape": list(a.shape), "datatype": "FP32", "data": a.ravel().tolist()} for n, a in unet.signature.request(feed).items()
    ]
    (output,) = triton.post("v2/models/unet/infer", {"inputs": inputs})["outputs"]
    assert output["shape"] == [1, 4, 16, 16]
    np.testing.assert_allclose(np.reshape(output["data"], (1, 4, 16, 16)), unet(feed)["out_sample"], atol=1e-5)
    assert json.dumps(output["data"])  # no NaN, which JSON has no word for
