"""The pipeline on a real server: its pictures are the library's, and what cannot be drawn is refused in one line."""

from __future__ import annotations

import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc")

import tritonclient.http as http
from tritonclient.utils import np_to_triton_dtype

from nemo_edge.errors import NemoEdgeError
from nemo_edge.serving.golden import LEVELS, Golden, ask, request
from nemo_edge.serving.server import Server
from nemo_edge.studio import Request, draw

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
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        (value,) = re.findall(rf'(?m)^{name}{{.*policy="{policy}".*}} ([\d.e+]+)$', answer.read().decode())
    return float(value)


def test_the_picture_is_the_library_s_over_grpc_and_http(triton: Server, golden: Golden) -> None:
    assert levels(ask(triton.grpc, golden.tensors)["image"], golden.picture) <= LEVELS
    inputs = [http.InferInput(n, list(a.shape), np_to_triton_dtype(a.dtype)).set_data_from_numpy(a) for n, a in golden.tensors.items()]
    with http.InferenceServerClient(triton.http) as client:
        answer = client.infer("pipeline", inputs)
    assert levels(answer.as_numpy("image"), golden.picture) <= LEVELS
    assert answer.as_numpy("score").tolist() == [1]


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
        ({"height": 1 << 24}, "height 16777216 is too large"),
        ({"policy": "nobody"}, "unknown policy 'nobody': this pipeline has always, off"),
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
    assert metric(triton, "nemo_edge_neurons_silenced", "off") == 0
    ask(triton.grpc, request(prompt="mellifluous", steps=1))
    assert metric(triton, "nemo_edge_neurons_silenced", "always") > 0
    log = triton.log.read_text()
    assert "pipeline" in log
    assert "mellifluous" not in log
