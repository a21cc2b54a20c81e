"""A pipeline of a server of the protocol V2: which model it is, what it is sent, and what is refused; and on a real Triton."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from painters import GIVES, TAKES, Answer, http_server, noise, v2, v2_picture

from nemo_edge.serving.golden import LEVELS, Golden
from nemo_edge.serving.remotes import base
from nemo_edge.serving.remotes.base import Busy, Refusal
from nemo_edge.serving.remotes.opening import Address, open_remote
from nemo_edge.serving.remotes.v2 import V2Pipeline
from nemo_edge.serving.server import Server
from nemo_edge.system.errors import InputError

pytest.importorskip("tritonclient.http")

OURS = {"pipeline": (TAKES, GIVES)}
UNET = ([{"name": "sample", "datatype": "FP32", "shape": [-1, 4, 64, 64]}], [{"name": "out", "datatype": "FP32", "shape": [-1, 4, 64, 64]}])


def drawn(prompt: str, seed: int) -> Answer:
    return v2_picture(np.asarray(noise(f"{prompt} {seed}"))[None])


def test_it_sends_a_prompt_and_a_seed_and_says_who_it_is() -> None:
    with http_server(v2({"unet": UNET, **OURS}, drawn)) as url, V2Pipeline(f"{url}/", None, 60) as pipeline:
        assert np.array_equal(pipeline("ein „roter“ Pinguin", 5), np.asarray(noise("ein „roter“ Pinguin 5")))
        found = pipeline.identity
    assert (found.kind, found.model, found.version, dict(found.told)) == ("triton", "pipeline", "10", {"name": "plain", "version": "1.0"})


def test_the_only_model_that_draws_is_taken_by_its_own_ports() -> None:
    """Without a seed, with another name of the picture, and with a batch before the prompt."""
    takes, gives = (
        [{"name": "prompt", "datatype": "BYTES", "shape": [-1, 1]}],
        [{"name": "pixels", "datatype": "UINT8", "shape": [-1, 8, 8, 3]}],
    )
    seen: list[Any] = []

    def infer(prompt: str, seed: int) -> Answer:
        seen.append((prompt, seed))
        return v2_picture(np.zeros((1, 8, 8, 3), np.uint8), "pixels")

    with http_server(v2({"unet": UNET, "draw": (takes, gives)}, infer)) as url, V2Pipeline(url, None, 60) as pipeline:
        assert pipeline("a pig", 5).shape == (8, 8, 3)
        assert pipeline.identity.model == "draw"
    assert seen == [("a pig", 0)]


@pytest.mark.parametrize(
    ("models", "model", "said"),
    [
        (OURS, "other", "has no model other: it has pipeline; name one with --model"),
        ({"unet": UNET}, None, r"has the models unet, none that takes a prompt and gives pictures"),
        ({"a": (TAKES, GIVES), "b": (TAKES, GIVES)}, None, r"has the models a, b, 2 that draw \(a, b\): name another with --model"),
        ({}, None, r"has the models \(none\)"),
        ({"unet": UNET}, "unet", r"the model unet at \S+ gives no picture \(UINT8 .*it takes sample FP32 and gives out FP32"),
        ({"x": (UNET[0], GIVES)}, "x", r"takes no prompt \(BYTES\): it takes sample FP32 and gives image UINT8, score FP32"),
    ],
)
def test_a_model_that_does_not_draw_is_refused(models: dict[str, Any], model: str | None, said: str) -> None:
    with http_server(v2(models, drawn)) as url, pytest.raises(InputError, match=said):
        V2Pipeline(url, model, 60)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((400, {"error": "this prompt is not drawn"}), Refusal, "answered 400: this prompt is not drawn"),
        ((403, {"error": "token expired"}), InputError, "answered 403: token expired; let it know you"),
        ((404, {"error": "unknown model"}), InputError, "answered 404: unknown model; see whether what draws is"),
        ((425, {"error": "too early"}), Busy, "answered 425: too early"),
        ((500, {"error": "CUDA out of memory"}), InputError, "answered 500: CUDA out of memory"),
        ((503, {"error": "busy"}), Busy, "answered 503: busy"),
        ((200, b"<html>"), InputError, "gave an answer that cannot be read"),
        ((200, {"model_name": "m", "outputs": []}), InputError, r"is no picture \(nothing, expected uint8"),
        (v2_picture(np.zeros((2, 4, 4, 3), np.uint8)), InputError, r"is no picture \(uint8 \[2, 4, 4, 3\]"),
        (v2_picture(np.zeros((1, 0, 0, 3), np.uint8)), InputError, "without a pixel"),
    ],
)
def test_an_answer_that_is_no_picture_is_told_apart(
    answer: Answer, kind: type[InputError], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_PAUSES_S", ())
    with http_server(v2(OURS, lambda *_: answer)) as url, V2Pipeline(url, None, 60) as pipeline:
        with pytest.raises(InputError, match=said) as raised:
            pipeline("a pig", 0)
    assert type(raised.value) is kind


def test_a_server_that_goes_away_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PAUSES_S", (0.0,))
    with http_server(v2(OURS, drawn)) as url:
        pipeline = V2Pipeline(url, None, 60)
    with pipeline, pytest.raises(Busy, match=r"does not answer \(.*\): start it; what was finished is kept"):
        pipeline("a pig", 0)


def test_without_the_client_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['tritonclient.http'] = None\n"
        "from nemo_edge.serving.remotes.v2 import V2Pipeline; V2Pipeline('http://127.0.0.1:9', None, 1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "MissingDependency: a Triton server is asked by tritonclient: `pip install 'nemo-edge[serve]'`" in done.stderr


@pytest.mark.triton
def test_on_a_triton_its_picture_is_the_library_s(triton: Server, golden: Golden) -> None:
    prompt, seed = golden.tensors["prompt"][0].decode(), int(golden.tensors["seed"][0])
    with open_remote(Address(f"http://{triton.http}")) as remote:
        assert np.abs(remote(prompt, seed).astype(int) - golden.picture[0]).max() <= LEVELS
        found = remote.identity
    assert (found.kind, found.model, found.version, found.told["name"]) == ("triton", "pipeline", "1", "triton")
    assert {"bundle", "manifest", "nemo_edge"} <= found.told.keys()


@pytest.mark.triton
def test_on_a_triton_another_model_is_named(triton: Server) -> None:
    with pytest.raises(InputError, match=r"the model unet at \S+ gives no picture"):
        open_remote(Address(triton.http, model="unet"))
    with pytest.raises(InputError, match=r"has no model nosuch: it has .*pipeline"):
        open_remote(Address(triton.http, model="nosuch"))
