"""Which kind of remote pipeline an address is, found out by asking it."""

from __future__ import annotations

__all__ = ["Address", "open_remote"]

import json
from dataclasses import dataclass
from urllib.parse import urlsplit

from nemo_edge.serving.remotes.base import Busy, Remote, without_query
from nemo_edge.serving.remotes.command import CommandPipeline
from nemo_edge.serving.remotes.ray import RayPipeline, ask, read_routes
from nemo_edge.serving.remotes.v2 import V2Pipeline
from nemo_edge.system.errors import InputError

_KINDS = ("triton", "ray")
_ASKING_S = 30.0
"""Time that a server has to say what it is."""


@dataclass(frozen=True)
class Address:
    """Where pictures come from: a URL or a command; and what of a server is asked, where it is not to be found out."""

    url: str | None = None
    command: str | None = None
    server: str | None = None
    """triton, for any of the KServe protocol V2, or ray, for any that takes JSON and gives a picture."""
    model: str | None = None
    timeout_s: float = 600.0
    """For one picture."""


def open_remote(address: Address) -> Remote:
    """Open what an address names; nothing is drawn. Raises `InputError` where nobody answers or nothing there draws, and for an address
    that is none; `MissingDependency` without the client of a Triton server."""
    if (address.url is None) == (address.command is None):
        given = "both were given" if address.url else "neither was given"
        raise InputError(f"give the URL of a server, or --command with a program that draws: {given}")
    if address.command is not None:
        return _program(address, address.command)
    url = _checked(address.url or "")
    if address.server not in (None, *_KINDS):
        raise InputError(f"--server {address.server}: give {' or '.join(_KINDS)}")
    timeout_s = min(_ASKING_S, address.timeout_s)
    routes = read_routes(url, timeout_s) if address.server != "triton" else None
    if address.server == "ray" or (address.server is None and routes is not None):
        return RayPipeline(url, address.model, address.timeout_s, routes)
    if not _speaks_v2(url, timeout_s):
        neither = "is no server of the protocol V2, as Triton is" if address.server else "says neither that it is Triton nor Ray Serve"
        raise InputError(
            f"{without_query(url)} {neither}: give the address of its HTTP interface; --server ray takes any that answers JSON with a "
            "picture, --command a program of yours that asks it"
        )
    return V2Pipeline(url, address.model, address.timeout_s)


def _program(address: Address, command: str) -> Remote:
    for option, value in (("--server", address.server), ("--model", address.model)):
        if value is not None:
            raise InputError(f"{option} is for the URL of a server: leave it out with --command")
    return CommandPipeline(command, address.timeout_s)


def _checked(url: str) -> str:
    """The URL, http where it has no scheme. Raises `InputError` for one that is none, or holds a password, which results would hold too."""
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        whole_host = parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError as error:
        raise InputError(f"{without_query(url)} is no URL ({error}): give one like http://127.0.0.1:8000") from error
    if parts.scheme not in ("http", "https") or not whole_host or any(letter.isspace() for letter in whole):
        raise InputError(f"{without_query(url)} is no URL of an HTTP server: give one like http://127.0.0.1:8000")
    if parts.username is not None:
        raise InputError("the URL holds a name or a password: ask such a server with --command and a program of yours that knows it")
    return whole


def _speaks_v2(url: str, timeout_s: float) -> bool:
    try:
        found = json.loads(ask(f"{without_query(url).rstrip('/')}/v2", timeout_s))
    except Busy:
        raise
    except (InputError, ValueError):
        return False
    return isinstance(found, dict) and "name" in found
