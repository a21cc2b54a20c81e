"""What an address is, is found out by asking it; an address that is none is refused before anything is asked."""

from __future__ import annotations

import socket

import pytest
from painters import GIVES, TAKES, Answer, http_server, noise, png, v2, v2_picture

from nemo_edge.serving.remotes.command import CommandPipeline
from nemo_edge.serving.remotes.opening import Address, open_remote
from nemo_edge.serving.remotes.ray import RayPipeline
from nemo_edge.serving.remotes.v2 import V2Pipeline
from nemo_edge.system.errors import InputError

DRAW = "sh -c true {prompt} {output}"


def routes(path: str, body: bytes) -> Answer:
    return (200, {"/": "default"}) if path == "/-/routes" else (200, png(noise("x")))


def test_a_server_says_what_it_is() -> None:
    pytest.importorskip("tritonclient.http")
    with http_server(routes) as url, open_remote(Address(url)) as remote:
        assert isinstance(remote, RayPipeline)
        assert (remote.identity.kind, remote.identity.address, remote.identity.model) == ("ray", f"{url}/", "default")
    with http_server(v2({"pipeline": (TAKES, GIVES)}, lambda *_: v2_picture(noise_pixels()))) as url:
        with open_remote(Address(url.removeprefix("http://"))) as remote:
            assert isinstance(remote, V2Pipeline)
    with open_remote(Address(command=DRAW)) as remote:
        assert isinstance(remote, CommandPipeline)


def noise_pixels() -> object:
    import numpy as np

    return np.asarray(noise("x"))[None]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (Address(), "or --command with a program that draws: neither was given"),
        (Address("http://127.0.0.1:9", command=DRAW), "both were given"),
        (Address(command=DRAW, model="m"), "--model is for the URL of a server"),
        (Address(command=DRAW, server="ray"), "--server is for the URL of a server"),
        (Address("http://127.0.0.1:9", server="kserve"), "--server kserve: give triton or ray"),
        (Address("grpc://127.0.0.1:8001"), "no URL of an HTTP server: give one like http://"),
        (Address("http://"), "no URL of an HTTP server"),
        (Address("http://host:port"), "no URL"),
        (Address("http://a b/"), "no URL"),
        (Address("http://me:secret@127.0.0.1/"), "the URL holds a name or a password"),
    ],
)
def test_an_address_that_is_none_is_refused(address: Address, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        open_remote(address)
    assert "secret" not in str(raised.value)


def test_a_key_in_the_query_is_said_nowhere() -> None:
    pytest.importorskip("tritonclient.http")
    with http_server(v2({"pipeline": (TAKES, GIVES)}, lambda *_: v2_picture(noise_pixels()))) as url:
        with open_remote(Address(f"{url}/?api_key=SECRET")) as remote:
            assert remote.identity.address == f"{url}/"
    with http_server(lambda path, body: (200, b"<html>")) as url, pytest.raises(InputError) as raised:
        open_remote(Address(f"{url}/?api_key=SECRET"))
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize("server", [None, "triton", "ray"])
def test_where_nobody_answers(server: str | None) -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(InputError, match=f"nobody answers at {url}.*Connection refused.*start the server"):
            open_remote(Address(url, server=server))


def test_a_server_of_something_else_is_refused() -> None:
    with http_server(lambda path, body: (200, b"<html>")) as url:
        with pytest.raises(InputError, match=r"says neither that it is Triton nor Ray Serve: .*--server ray"):
            open_remote(Address(url))
        with pytest.raises(InputError, match="is no server of the protocol V2"):
            open_remote(Address(url, server="triton"))
        with open_remote(Address(f"{url}/draw", server="ray")) as remote:
            assert remote.identity.address == f"{url}/draw"


def test_a_port_that_does_not_speak_http_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        server.settimeout(10)

        def hang_up() -> None:
            connection, _ = server.accept()
            connection.recv(100)
            connection.sendall(b"\x00\x00\x12\x04\x00\x00")
            connection.close()

        import threading

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(InputError, match=f"nobody answers at {url}.*give the address of its HTTP interface"):
            open_remote(Address(url))
        thread.join()
