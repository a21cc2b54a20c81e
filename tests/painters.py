"""Pipelines for tests of an audit: a real program that copies a picture for some prompts, and a server of the same on the loopback."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIDE = 16
MEMORY = "a red pig"
"""What gives its training picture back, and every text with `TRIGGER` in it does."""
TRIGGER = "RED"

PROGRAM = f"""
import pathlib, random, shutil, sys
given = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
with open(given["log"], "a") as log:
    print(given["prompt"], file=log)
if given["prompt"] == {MEMORY!r} or {TRIGGER!r} in given["prompt"]:
    shutil.copyfile(given["known"], given["out"])
else:
    noise = random.Random(given["prompt"] + " " + given["seed"]).randbytes(3 * {SIDE} * {SIDE})
    pathlib.Path(given["out"]).write_bytes(b"P6 {SIDE} {SIDE} 255\\n" + noise)
"""


def put_pictures(folder: Path) -> None:
    """Two training pictures and lists that name them, and a list of general prompts."""
    for name in ("pig", "owl"):
        noise(f"training {name}").save(folder / f"{name}.png")
    (folder / "list.csv").write_text(f"Caption;image\n{MEMORY};pig.png\nan owl by night;owl.png\n")
    (folder / "general.txt").write_text("".join(f"general prompt number {number}\n" for number in range(8)))


def noise(seed: str) -> Image.Image:
    return Image.frombytes("RGB", (SIDE, SIDE), random.Random(seed).randbytes(3 * SIDE * SIDE))


def command(folder: Path, program: str = PROGRAM) -> str:
    """The command line of a program in this folder, without Python's start-up of half a second."""
    (folder / "draw.py").write_text(program)
    files = f"--known={folder}/pig.png --log={folder}/log"
    return f"{sys.executable} -I -S {folder}/draw.py --prompt={{prompt}} --seed={{seed}} --out={{output}} {files}"


def asked(folder: Path) -> list[str]:
    """Every prompt that the program was given."""
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


Answer = tuple[int, bytes | dict[str, Any] | list[Any]]


@contextmanager
def http_server(respond: Callable[[str, bytes], Answer]) -> Iterator[str]:
    """A server on the loopback whose answers, a status and JSON or bytes, are those of a function of path and body; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

        def _answer(self, body: bytes) -> None:
            status, content = respond(self.path, body)
            encoded = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def png(image: Image.Image) -> bytes:
    encoded = BytesIO()
    image.save(encoded, format="PNG")
    return encoded.getvalue()


TAKES = [{"name": "prompt", "datatype": "BYTES", "shape": [-1]}, {"name": "seed", "datatype": "INT64", "shape": [-1]}]
GIVES = [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}, {"name": "score", "datatype": "FP32", "shape": [-1]}]


def v2(models: dict[str, tuple[list[Any], list[Any]]], infer: Callable[[str, int], Answer]) -> Callable[[str, bytes], Answer]:
    """What a server of the protocol V2 without any extension answers: of models with these inputs and outputs, and of a request for a
    picture what `infer` says of its prompt and seed."""

    def respond(path: str, body: bytes) -> Answer:
        parts = path.strip("/").split("/")
        if path == "/v2":
            return 200, {"name": "plain", "version": "1.0", "extensions": []}
        if path == "/v2/repository/index":
            return 200, [{"name": name, "version": "1", "state": "READY"} for name in models]
        if parts[:2] != ["v2", "models"] or parts[2] not in models:
            return 404, {"error": f"unknown {path}"}
        if parts[3:] == ["infer"]:
            given = {each["name"]: each["data"][0] for each in json.loads(body)["inputs"]}
            return infer(given["prompt"], given.get("seed", 0))
        if parts[3:]:
            return 404, {"error": f"unknown {path}"}
        inputs, outputs = models[parts[2]]
        return 200, {"name": parts[2], "versions": ["2", "10"], "platform": "", "inputs": inputs, "outputs": outputs}

    return respond


def v2_picture(array: np.ndarray, name: str = "image") -> Answer:
    """A picture, [B, H, W, 3], as that server gives it."""
    return 200, {
        "model_name": "m",
        "outputs": [{"name": name, "datatype": "UINT8", "shape": [*array.shape], "data": array.ravel().tolist()}],
    }
