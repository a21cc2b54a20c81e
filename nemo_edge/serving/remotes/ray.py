"""A pipeline behind a plain URL: a POST of a prompt and a seed in JSON, answered by a picture file, as `nemo_edge.serving.ray` does it.

Knows HTTP and where Ray Serve lists its applications.
"""

from __future__ import annotations

__all__ = ["ROUTES", "RayPipeline", "ask", "origin", "read_routes"]

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np

from nemo_edge.serving.remotes.base import KEPT, LARGEST_BYTES, SAID, Busy, Identity, answered, decode_picture, patiently, without_query
from nemo_edge.system.errors import InputError

ROUTES = "/-/routes"
"""Where Ray Serve's proxy says which application is where."""


class RayPipeline:
    """An application, by its URL; `routes` are those of its server, where it lists them."""

    def __init__(self, url: str, model: str | None, timeout_s: float, routes: Mapping[str, str] | None = None) -> None:
        """Raises `InputError` for an application that the server has not."""
        self._url, name = _application(url, model, routes)
        self._timeout_s = timeout_s
        self.identity = Identity(kind="ray", address=without_query(self._url), model=name)

    def __call__(self, prompt: str, seed: int) -> np.ndarray:
        """Return a picture."""
        content = json.dumps({"prompt": prompt, "seed": seed}).encode()
        return decode_picture(patiently(lambda: ask(self._url, self._timeout_s, content)), f"what {self.identity.address} answers")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """There is no connection to close."""


def ask(url: str, timeout_s: float, content: bytes | None = None) -> bytes:
    """Return the answer to a GET, or to a POST of `content`.

    Raises `Refusal` where the server says that the request is wrong, `Busy` where it has no time or does not answer, `InputError` for
    another error of its. None of them says the URL's query, which may hold a key.
    """
    shown = without_query(url)
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"} if content is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            said: bytes = answer.read(LARGEST_BYTES)
            return said
    except urllib.error.HTTPError as error:
        raise answered(shown, error.code, _said(error)) from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, TimeoutError):
            raise InputError(f"{shown} did not answer in {timeout_s:g} s: give it longer with --timeout; {KEPT}") from error
        why = " ".join(str(reason).split()) or type(reason).__name__
        raise Busy(f"nobody answers at {shown} ({why}): start the server, or give the address of its HTTP interface; {KEPT}") from error


def origin(url: str) -> str:
    """The scheme and host of a URL."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def read_routes(url: str, timeout_s: float) -> dict[str, str] | None:
    """Return the applications of a Ray Serve by their routes; None for another server. Raises `Busy` where nobody answers."""
    try:
        found: Any = json.loads(ask(origin(url) + ROUTES, timeout_s))
    except Busy:
        raise
    except (InputError, ValueError):
        return None
    named = isinstance(found, dict) and all(route.startswith("/") and isinstance(name, str) for route, name in found.items())
    return found if named else None


def _application(url: str, model: str | None, routes: Mapping[str, str] | None) -> tuple[str, str]:
    """The URL of an application and its name; of a server that lists none, the URL as it is."""
    if routes is None:
        if model is not None:
            raise InputError(
                f"--model {model}: {without_query(url)} does not list its applications; give the URL of the one that draws, without --model"
            )
        return url, ""
    path = urlsplit(url).path or "/"
    chosen = _route(path, model, routes)
    if chosen is None:
        listed = ", ".join(f"{name} at {route}" for route, name in routes.items()) or "none"
        wanted = f"no application {model}" if model is not None else f"no application at {path}"
        raise InputError(f"the Ray Serve at {origin(url)} has {wanted}: it has {listed}; name one with --model")
    whole = chosen if model is not None or path == "/" else path
    query = f"?{urlsplit(url).query}" if urlsplit(url).query else ""
    return f"{origin(url)}{whole}{query}", routes[chosen]


def _route(path: str, model: str | None, routes: Mapping[str, str]) -> str | None:
    """The route of the application of that name; without one the only one, or the longest that a path begins with, as Ray has it."""
    if model is not None:
        fitting = [route for route, name in routes.items() if name == model]
    elif path == "/":
        fitting = [*routes] if len(routes) == 1 else [route for route in routes if route == "/"]
    else:
        fitting = [route for route in routes if path == route or path.startswith(f"{route.rstrip('/')}/")]
    return max(fitting, key=len, default=None)


def _said(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(SAID * 4).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
