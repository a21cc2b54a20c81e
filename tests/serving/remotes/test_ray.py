"""A plain URL is asked in JSON and answers with a picture file; what else it answers is told apart."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from painters import SIDE, Answer, http_server, noise, png

from nemo_edge.serving.remotes import base
from nemo_edge.serving.remotes.base import Busy, Refusal
from nemo_edge.serving.remotes.ray import RayPipeline, ask, origin, read_routes
from nemo_edge.system.errors import InputError


def test_it_sends_a_prompt_and_a_seed_and_takes_a_picture() -> None:
    seen = []

    def respond(path: str, body: bytes) -> Answer:
        seen.append((path, json.loads(body)))
        return 200, png(noise(str(seen[-1][1]["seed"])))

    with http_server(respond) as url, RayPipeline(f"{url}/draw", None, 60) as pipeline:
        assert np.array_equal(pipeline("ein „roter“ Pinguin", 5), np.asarray(noise("5")))
    assert seen == [("/draw", {"prompt": "ein „roter“ Pinguin", "seed": 5})]


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        ((400, b"prompt not allowed\n"), Refusal, "answered 400: prompt not allowed$"),
        ((500, b"out of memory"), InputError, "answered 500: out of memory; see the log of the server"),
        ((401, b"token expired"), InputError, "answered 401: token expired; let it know you"),
        ((404, b"no app"), InputError, "answered 404: no app; see whether what draws is .* deployed"),
        ((429, b"slow down"), Busy, "answered 429: slow down; ask it later: what was finished is kept"),
        ((200, {"images": []}), InputError, r'is no picture \(14 bytes: {"images": \[\]}\)'),
        ((200, b""), InputError, r"is no picture \(0 bytes\)"),
    ],
)
def test_what_is_no_picture_is_told_apart(answer: Answer, kind: type[InputError], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PAUSES_S", ())
    with http_server(lambda path, body: answer) as url, RayPipeline(url, None, 60) as pipeline:
        with pytest.raises(InputError, match=said) as raised:
            pipeline("a pig", 0)
    assert type(raised.value) is kind


def test_a_server_that_is_busy_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PAUSES_S", (0.0, 0.0, 0.0))
    answers: list[Answer] = [(503, b""), (429, b""), (200, png(noise("x")))]
    with http_server(lambda path, body: answers.pop(0)) as url, RayPipeline(url, None, 60) as pipeline:
        assert np.array_equal(pipeline("a pig", 0), np.asarray(noise("x")))


def test_a_server_that_takes_too_long_is_not_waited_for_again() -> None:
    calls = []

    def respond(path: str, body: bytes) -> Answer:
        calls.append(path)
        time.sleep(1.5)
        return 200, b""

    with http_server(respond) as url, RayPipeline(url, None, 0.3) as pipeline:
        with pytest.raises(InputError, match=r"did not answer in 0\.3 s: give it longer with --timeout"):
            pipeline("a pig", 0)
    assert calls == ["/"]


def test_routes_are_read_where_there_are_any() -> None:
    with http_server(lambda path, body: (200, {"/": "default"}) if path == "/-/routes" else (404, b"")) as url:
        assert read_routes(f"{url}/some/where", 10) == {"/": "default"}
    for other in ((404, b"no"), (200, b"no"), (200, [1]), (200, {"name": "x"}), (200, {"/": 3})):
        with http_server(lambda path, body, other=other: other) as url:  # type: ignore[misc]
            assert read_routes(url, 10) is None
    assert origin("https://host:1/a?b") == "https://host:1"


TWO = {"/pictures": "sd", "/pictures/large": "xl"}


@pytest.mark.parametrize(
    ("path", "model", "routes", "chosen"),
    [
        ("", None, {"/": "default"}, ("/", "default")),
        ("", None, {"/draw": "sd"}, ("/draw", "sd")),
        ("", "xl", TWO, ("/pictures/large", "xl")),
        ("/pictures/large/x", None, TWO, ("/pictures/large/x", "xl")),
        ("/pictures?key=1", None, TWO, ("/pictures", "sd")),
        ("", None, TWO | {"/": "front"}, ("/", "front")),
    ],
)
def test_an_application_is_found_by_its_route_or_its_name(
    path: str, model: str | None, routes: dict[str, str], chosen: tuple[str, str]
) -> None:
    found = RayPipeline(f"http://h:1{path}", model, 1, routes).identity
    assert (found.address, found.model) == (f"http://h:1{chosen[0]}", chosen[1])


def test_a_key_in_the_query_is_sent_and_said_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_PAUSES_S", ())
    seen, answers = [], [(200, png(noise("x"))), (400, b"no"), (500, b"no"), (503, b""), (200, b"?")]

    def respond(path: str, body: bytes) -> Answer:
        seen.append(path)
        return answers[len(seen) - 1]

    with http_server(respond) as url:
        pipeline = RayPipeline(f"{url}/draw?api_key=SECRET", None, 60)
        assert pipeline("a pig", 0).shape == (SIDE, SIDE, 3)
        for _ in answers[1:]:
            with pytest.raises(InputError) as raised:
                pipeline("a pig", 0)
            assert "SECRET" not in str(raised.value)
    with pytest.raises(Busy) as gone:
        pipeline("a pig", 0)
    assert "SECRET" not in str(gone.value) + pipeline.identity.model_dump_json()
    assert seen == ["/draw?api_key=SECRET"] * len(answers)


@pytest.mark.parametrize(
    ("path", "model", "said"),
    [
        ("", "tiny", "has no application tiny: it has sd at /pictures, xl at /pictures/large; name one with --model"),
        ("", None, "has no application at /: it has sd at /pictures"),
        ("/elsewhere", None, "has no application at /elsewhere"),
        ("/picturesque", None, "has no application at /picturesque"),
    ],
)
def test_an_application_that_is_not_there_is_named(path: str, model: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        RayPipeline(f"http://h:1{path}", model, 1, TWO)


def test_a_name_means_nothing_where_none_are_listed() -> None:
    with pytest.raises(InputError, match="does not list its applications"):
        RayPipeline("http://h:1/", "sd", 1)


def test_a_get_and_a_post() -> None:
    with http_server(lambda path, body: (200, path.encode() + body)) as url:
        assert ask(f"{url}/a", 10) == b"/a"
        assert ask(f"{url}/a", 10, b"b") == b"/ab"
