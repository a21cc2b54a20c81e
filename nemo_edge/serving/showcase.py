"""Ships a bundle and serves it on this machine, for a person to try: `python -m nemo_edge.serving.showcase BUNDLE`.

Prints a `curl` line and a Python snippet that return a picture, and serves until Ctrl-C or SIGTERM, which drain the server.
"""

from __future__ import annotations

__all__ = ["main", "words"]

import argparse
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from nemo_edge.serving.golden import check_golden, make_golden
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Server, find_environment, serve
from nemo_edge.system.exits import exit_code, stop_on_sigterm

_PROMPT = "saxophone falafel jubilee"

_WORDS = """
Serving {bundle}; HTTP {http}, gRPC {grpc}, metrics http://{metrics}/metrics. Ctrl-C ends it.

With curl:

curl -s http://{http}/v2/models/pipeline/infer -d '{{"inputs": [
  {{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["{prompt}"]}},
  {{"name": "seed", "shape": [1], "datatype": "INT64", "data": [0]}}]}}' | {python} -c '
import json, sys, numpy, PIL.Image
image = json.load(sys.stdin)["outputs"][0]
PIL.Image.fromarray(numpy.uint8(image["data"]).reshape(image["shape"])[0]).save("curl.png")'

With Python:

import numpy, PIL.Image
from tritonclient.http import InferenceServerClient, InferInput
prompt = InferInput("prompt", [1], "BYTES")
prompt.set_data_from_numpy(numpy.array([b"{prompt}"], object))
image = InferenceServerClient("{http}").infer("pipeline", [prompt]).as_numpy("image")
PIL.Image.fromarray(image[0]).save("python.png")
"""


def words(server: Server, bundle: Path, python: str = sys.executable) -> str:
    """What a person is told: where the server is, and two ways to get a picture of it."""
    return _WORDS.format(bundle=bundle, http=server.http, grpc=server.grpc, metrics=server.metrics, prompt=_PROMPT, python=python)


def main(arguments: list[str] | None = None) -> None:
    """Serve a bundle until a signal comes."""
    parser = argparse.ArgumentParser(prog="python -m nemo_edge.serving.showcase", description="Serve a bundle on this machine.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--environment", type=Path, default=Path(".venv-triton"), help="virtual environment of the Triton server")
    parser.add_argument("--repository", type=Path, help="model repository to ship to; a temporary one where it is not given")
    parser.add_argument("--ports", type=int, nargs=3, metavar=("HTTP", "GRPC", "METRICS"), help="free ones where they are not given")
    options = parser.parse_args(arguments)
    stop_on_sigterm()
    try:
        _serve(options.bundle, options.environment, options.repository, tuple(options.ports) if options.ports else None)
    except BaseException as error:
        raise SystemExit(exit_code(error)) from error


def _serve(bundle: Path, environment: Path, repository: Path | None, ports: tuple[int, int, int] | None) -> None:
    found = find_environment(environment)
    with tempfile.TemporaryDirectory(prefix="nemo-edge-") as scratch:
        place = repository or Path(scratch) / "repository"
        ship(bundle, place)
        golden = make_golden(bundle)
        with serve(place, found, lambda server: check_golden(golden, server.grpc), ports=ports) as server:
            with suppress(KeyboardInterrupt):  # what it tells the person to press
                print(words(server, bundle), flush=True)
                while True:  # a wait without an end can miss a signal that comes just before it
                    time.sleep(0.2)


if __name__ == "__main__":
    main()
