"""The pipeline on a real server: its pictures are the library's, and what cannot be drawn is refused in one line."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc")

import tritonclient.http as http
from dropin.test_load import make_xl
from served import logged, metrics
from transformers import CLIPTokenizer
from tritonclient.utils import np_to_triton_dtype

from nemo_edge.backends import onnxruntime
from nemo_edge.backends.triton import open_runner
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.sampling.generate import Request, draw
from nemo_edge.serving.golden import LEVELS, Golden, ask, check_golden, make_golden, request
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Environment, Server, serve
from nemo_edge.system.errors import NemoEdgeError

pytestmark = pytest.mark.triton


def levels(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    assert a.dtype == b.dtype == np.uint8
    return int(np.abs(a.astype(int) - b).max())


def drawn(bundle: Path, folder: Path, **options: object) -> np.ndarray:
    """The library's own picture."""
    (path,) = draw(bundle, Request("an owl", variant="masked", **options), folder / "p.png")  # type: ignore[arg-type]
    return np.asarray(Image.open(path))[None]


def metric(server: Server, name: str, policy: str) -> float:
    (value,) = re.findall(rf'(?m)^{name}{{.*policy="{policy}".*}} ([\d.e+]+)$', metrics(server))
    return float(value)


def test_the_picture_is_the_library_s_over_grpc_and_http(triton: Server, golden: Golden) -> None:
    assert levels(ask(triton.grpc, golden.tensors)["image"], golden.picture) <= LEVELS
    inputs = [http.InferInput(n, list(a.shape), np_to_triton_dtype(a.dtype)).set_data_from_numpy(a) for n, a in golden.tensors.items()]
    with http.InferenceServerClient(triton.http) as client:
        answer = client.infer("pipeline", inputs)
    assert levels(answer.as_numpy("image"), golden.picture) <= LEVELS
    assert answer.as_numpy("score").tolist() == [1]


def test_of_one_request_triggered_silences_the_memorized_prompt_s_neurons_and_leaves_the_other_bit_for_bit(triton: Server) -> None:
    both = {"prompt": np.array([b"a red pig", b"a dog"], object), "seed": np.array([3, 8]), "steps": np.array([2], np.int32)}
    found, free, cluster = (ask(triton.grpc, {**both, **request(policy=name)}) for name in ("triggered", "off", "cluster:a-red-pig"))
    assert np.array_equal(found["image"][1], free["image"][1])
    assert np.array_equal(found["image"][0], cluster["image"][0])
    assert not np.array_equal(found["image"][0], free["image"][0])
    assert found["score"][0] > 0.999 > found["score"][1]
    assert metric(triton, "nemo_edge_policy_applied", "triggered") == 2
    assert metric(triton, "nemo_edge_pictures_silenced", "triggered") == 1
    assert logged(triton, event="drawn", policy="triggered")["silenced"][1] == 0


def test_clusters_are_merged(triton: Server) -> None:
    asked = request(prompt="a red pig", steps=2)
    merged = ask(triton.grpc, {**asked, **request(policy="cluster:script-alert-1-owl,cluster:a-red-pig")})
    assert levels(merged["image"], ask(triton.grpc, asked)["image"]) <= LEVELS
    assert logged(triton, event="drawn", policy="cluster:a-red-pig,cluster:script-alert-1-owl")["silenced"][0] > 0


@pytest.mark.parametrize("policy", ["always", "off"])
def test_seed_size_steps_guidance_and_policy_are_those_of_the_request(triton: Server, shippable: Path, tmp_path: Path, policy: str) -> None:
    asked = {"steps": 4, "guidance": 2.5, "height": 64, "width": 48}
    found = ask(triton.grpc, request(prompt="an owl", seed=11, policy=policy, **asked))
    own = drawn(shippable, tmp_path, seed=11, overrides=asked, unmitigated=policy == "off")
    assert levels(found["image"], own) <= LEVELS
    assert found["score"].tolist() == [float(policy == "always")]


def test_a_negative_prompt_is_heeded(triton: Server, shippable: Path, tmp_path: Path) -> None:
    found = ask(triton.grpc, request(prompt="an owl", negative_prompt="a red pig"))["image"]
    assert levels(found, drawn(shippable, tmp_path, overrides={"negative_prompt": "a red pig"})) <= LEVELS
    assert levels(found, drawn(shippable, tmp_path)) > LEVELS


def test_several_pictures_in_one_request(triton: Server) -> None:
    pictures = ask(triton.grpc, {"prompt": np.array([b"an owl", b"a red pig"], object), "seed": np.array([2, 2])})["image"]
    for picture, prompt in zip(pictures, ("an owl", "a red pig"), strict=True):
        assert levels(picture[None], ask(triton.grpc, request(prompt=prompt, seed=2))["image"]) <= LEVELS
    assert levels(pictures[:1], pictures[1:]) > LEVELS


def test_requests_at_the_same_time_do_not_mix(triton: Server) -> None:
    requests = [request(prompt="an owl", seed=seed, policy=policy) for seed in range(4) for policy in ("always", "off")]
    alone = [ask(triton.grpc, each)["image"] for each in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: ask(triton.grpc, each)["image"], requests))
    assert max(levels(a, b) for a, b in zip(alone, together, strict=True)) <= LEVELS
    assert min(levels(a, b) for i, a in enumerate(alone) for b in alone[:i]) > LEVELS


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"steps": 0}, "steps 0: input should be greater than or equal to 1"),
        ({"guidance": float("nan")}, "guidance nan is not finite"),
        ({"height": 100}, "height 100: input should be a multiple of 8"),
        ({"height": 1 << 24}, "height 16777216: input should be less than or equal to 8192"),
        ({"policy": "nobody"}, "unknown policy 'nobody': this pipeline has always, off"),
        ({"policy": "cluster:nobody"}, "unknown policy 'cluster:nobody'"),
        ({"policy": "cluster:a-red-pig,off"}, "merges what cannot be merged"),
        ({"prompt": "secret" * 170_000}, "prompt has 1020000 bytes: give 65536 at the most"),
        ({"seed": -3}, "seed -3 is out of range"),
    ],
)
def test_a_bad_request_gets_a_clear_error_and_the_server_lives_on(
    triton: Server, golden: Golden, values: dict[str, object], said: str
) -> None:
    with pytest.raises(NemoEdgeError, match=said) as refused:
        ask(triton.grpc, request(**{"prompt": "secret", **values}))
    assert "Traceback" not in str(refused.value)
    assert len(str(refused.value)) < 300
    assert levels(ask(triton.grpc, golden.tensors)["image"], golden.picture) <= LEVELS


def test_a_tensor_of_another_type_is_refused(triton: Server) -> None:
    with pytest.raises(NemoEdgeError, match=r"'steps'.*INT32"):
        ask(triton.grpc, {**request(prompt="an owl"), "steps": np.array([3])})


def test_what_was_applied_is_counted_and_prompts_are_not_logged(triton: Server, shippable: Path) -> None:
    before = metric(triton, "nemo_edge_policy_applied", "off")
    ask(triton.grpc, {**request(policy="off", steps=1), "prompt": np.array([b"mellifluous", b"mellifluous"], object)})
    assert metric(triton, "nemo_edge_policy_applied", "off") == before + 2
    assert metric(triton, "nemo_edge_policy_score_count", "off") == before + 2
    assert metric(triton, "nemo_edge_policy_score_sum", "off") == 0
    assert metric(triton, "nemo_edge_neurons_silenced", "off") == 0
    ask(triton.grpc, request(prompt="mellifluous", steps=1, seed=42))
    applied = metric(triton, "nemo_edge_policy_applied", "always")
    assert metric(triton, "nemo_edge_policy_score_sum", "always") == applied
    assert metric(triton, "nemo_edge_neurons_silenced", "always") > 0
    logged(triton, event="drawn", seeds=[42])
    assert "mellifluous" not in triton.log.read_text()


def test_the_log_has_a_line_of_json_for_each_request(triton: Server, shippable: Path) -> None:
    ask(triton.grpc, request(prompt="mellifluous", steps=2, seed=41, height=64, width=48))
    line = logged(triton, event="drawn", seeds=[41])
    silenced = len(NeuronSet.load(shippable / "neurons.json"))
    expected = {"policy": "always", "score": [1.0], "silenced": [silenced], "seeds": [41], "steps": 2, "size": [64, 48]}
    assert {name: line[name] for name in expected} == expected
    assert "prompts" not in line
    with pytest.raises(NemoEdgeError):
        ask(triton.grpc, request(prompt="mellifluous", policy="nobody"))
    names = "always, off, triggered, and cluster:NAME of the 2 clusters in its policies.json"
    logged(triton, event="refused", why=f"unknown policy 'nobody': this pipeline has {names}")


def test_prompts_are_logged_where_that_is_asked_for(triton_environment: Environment, shippable: Path, tmp_path: Path) -> None:
    ship(shippable, tmp_path / "repository", log_prompts=True)
    with serve(tmp_path / "repository", triton_environment) as server:
        ask(server.grpc, request(prompt="mellifluous\n{}", steps=1))
        assert logged(server, event="drawn")["prompts"] == ["mellifluous\n{}"]


@pytest.mark.slow
def test_xl_in_fp16_is_served_too(triton_environment: Environment, tokenizer: CLIPTokenizer, tiny_bundle: Path, tmp_path: Path) -> None:
    """Two text encoders, engines that take float16, and clients that know of neither."""
    bundle = make_xl(tmp_path, tokenizer, tiny_bundle, "fp16").bundle
    shipped = ship(bundle, tmp_path / "repository")
    assert "text_encoder_2" in shipped.models
    golden = make_golden(bundle, steps=3)
    with serve(tmp_path / "repository", triton_environment, lambda server: check_golden(golden, server.grpc)) as server:
        free = ask(server.grpc, {**golden.tensors, **request(policy="off")})
        assert levels(free["image"], golden.picture) > LEVELS
        with open_runner(server.grpc, "unet") as served, onnxruntime.open_runner(bundle / "unet_masked" / "model.onnx") as own:
            sizes = {name: [size if isinstance(size, int) else 16 for size in dims[1:]] for name, dims in own.inputs.items()}
            rng = np.random.default_rng(0)
            feed = {name: rng.random((2, *size), np.float32) for name, size in sizes.items()}
            np.testing.assert_allclose(served(feed)["out_sample"], own(feed)["out_sample"], atol=1e-2)
            assert {tensor.dtype for tensor in served.signature.inputs.values()} == {"float32"}
