"""A Triton server on this machine's loopback: started with a model repository, ready once it has answered right, drained when it ends.

The server is the one inside the wheel of nvidia-pytriton, in an environment of its own (`make triton`), since it needs numpy 1.
"""

from __future__ import annotations

__all__ = ["Environment", "Server", "find_environment", "serve"]

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_edge.serving.versions import PIPELINE
from nemo_edge.system.errors import MissingDependency, NemoEdgeError

_LOOPBACK = "127.0.0.1"
_WHERE = (
    "import json, sysconfig as s; "
    "print(json.dumps([s.get_path('purelib'), s.get_python_version(), *s.get_config_vars('LIBDIR', 'INSTSONAME')]))"
)
_POLL_S = 0.1
_FAILED = "failed to load"
_STARTS = 3
"""Before 25.08 (python_backend's pull request 408) Triton gives up on a model's process that shows no life for a second while it
loads, as on a busy machine, and then aborts or waits for ever; the wheel has 24.10."""
_LOST = "it did not load its models in time, and does not say why: close what keeps this machine busy"


@dataclass(frozen=True)
class Environment:
    """Where a Triton server and its Python are."""

    folder: Path
    binary: Path
    backends: Path
    stub: Path
    """Triton's process for Python models, built for the environment's version of Python."""
    libraries: tuple[Path, ...]


@dataclass(frozen=True)
class Server:
    """A server that runs: its addresses and its process."""

    http: str
    grpc: str
    metrics: str
    process: subprocess.Popen[bytes]
    log: Path

    def post(self, path: str, content: Mapping[str, Any] | None = None, timeout_s: float = 60) -> Any:
        """Send a POST request to a path of the server's HTTP interface; return the JSON of its answer.

        Raises `NemoEdgeError` with what the server said where it refuses.
        """
        return _ask(f"http://{self.http}/{path}", json.dumps(content or {}).encode(), timeout_s)

    def load(self, models: tuple[str, ...]) -> None:
        """Have the server load models anew, in this order. Raises `NemoEdgeError` for the first that does not load."""
        for model in models:
            self.post(f"v2/repository/models/{model}/load", timeout_s=600)

    def drain(self, timeout_s: float = 60) -> None:
        """Take no more requests for pictures, and wait for those that were taken.

        A signal alone ends them half-way: Triton then refuses the calls of `unet` that the pipeline has yet to make.
        """
        models = self._states() if self.process.poll() is None else {}
        drawing = [name for name in models if name == PIPELINE or name.endswith(f"_{PIPELINE}")]
        for name in drawing:
            self.post(f"v2/repository/models/{name}/unload")
        end = time.monotonic() + timeout_s
        while drawing and any("UNLOADING" in self._states().get(name, ()) for name in drawing) and time.monotonic() < end:
            time.sleep(_POLL_S)

    def stop(self, timeout_s: float = 60) -> None:
        """Drain the server and end it; one that does not answer any more is ended."""
        with suppress(NemoEdgeError):
            self.drain(timeout_s)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _states(self) -> dict[str, set[str]]:
        """The states of each model's versions."""
        found: dict[str, set[str]] = {}
        for entry in self.post("v2/repository/index"):
            found.setdefault(entry["name"], set()).add(entry.get("state", ""))
        return found


def find_environment(folder: Path) -> Environment:
    """Find the server in a virtual environment. Raises `MissingDependency` where it, or a shared libpython for it, is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        raise MissingDependency(f"{folder} has no Triton server: `make triton` makes it")
    found = subprocess.run([python, "-I", "-c", _WHERE], capture_output=True, text=True, check=True)
    packages, version, libraries, library = json.loads(found.stdout)
    server = Path(packages) / "pytriton" / "tritonserver"
    binary, stub = server / "bin" / "tritonserver", server / "python_backend_stubs" / version / "triton_python_backend_stub"
    for path, what in ((binary, "no Triton server"), (stub, f"no Triton server for Python {version}")):
        if not path.is_file():
            raise MissingDependency(f"{folder} has {what}: `make triton` makes it")
    if not (Path(libraries) / library).is_file() or ".so" not in library:
        raise MissingDependency(f"Triton needs a shared libpython{version}.so, which {python} has not: take another Python for {folder}")
    return Environment(folder, binary, server / "backends", stub, (Path(packages) / "nvidia_pytriton.libs", Path(libraries)))


@contextmanager
def serve(
    repository: Path,
    environment: Environment,
    check: Callable[[Server], None] = lambda server: None,
    *,
    ports: tuple[int, int, int] | None = None,
    timeout_s: float = 180,
) -> Iterator[Server]:
    """Run a server on the loopback with all models of a repository, until the context is left; then it is drained and ended.

    It counts as ready once Triton says so and `check` has passed: readiness alone is no proof that its answers are right. One that is
    aborted, or not ready within `timeout_s`, is started again, up to three starts in all. `ports` are those of HTTP, gRPC and metrics,
    free ones where they are not given. Raises `NemoEdgeError` with the reason in its log where it does not get ready.
    """
    with tempfile.TemporaryDirectory(prefix="nemo-edge-triton-") as scratch:
        chosen = ports or _free_ports()
        command = _command(repository, environment, Path(scratch), chosen)
        server = _ready(command, _variables(environment), Path(scratch) / "log", chosen, timeout_s)
        try:
            check(server)
            yield server
        finally:
            server.stop()


def _ready(command: list[str], variables: dict[str, str], log: Path, ports: tuple[int, int, int], timeout_s: float) -> Server:
    """A server that says it is ready; none is left where it does not get so."""
    http, grpc, metrics = (f"{_LOOPBACK}:{port}" for port in ports)
    for _ in range(_STARTS):
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=variables, start_new_session=True)
        server = Server(http, grpc, metrics, process, log)
        try:
            if _wait(server, timeout_s):
                return server
            lost = process.poll() in (None, -signal.SIGABRT)
        except BaseException:
            server.stop()
            raise
        server.stop()
        if not lost:
            break
    raise NemoEdgeError(f"the Triton server is not ready: {_LOST if lost else _last_words(log)}")


def _command(repository: Path, environment: Environment, scratch: Path, ports: tuple[int, int, int]) -> list[str]:
    backends = shutil.copytree(environment.backends, scratch / "backends")
    shutil.copy2(environment.stub, backends / "python")
    named = dict(zip(("http", "grpc", "metrics"), ports, strict=True))
    addresses = [part for name, port in named.items() for part in (f"--{name}-address={_LOOPBACK}", f"--{name}-port={port}")]
    return [
        str(environment.binary),
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--backend-config=python,shm-region-prefix-name={scratch.name}",
        "--disable-auto-complete-config",
        *addresses,
    ]


def _variables(environment: Environment) -> dict[str, str]:
    """The server finds its libraries and its Python by the environment."""
    former = [os.environ[name] for name in ("LD_LIBRARY_PATH",) if os.environ.get(name)]
    own = {
        "LD_LIBRARY_PATH": os.pathsep.join([*map(str, environment.libraries), *former]),
        "PATH": os.pathsep.join([str(environment.folder / "bin"), os.environ.get("PATH", "")]),
        "VIRTUAL_ENV": str(environment.folder),
        "TOKENIZERS_PARALLELISM": "false",
    }
    return {**{name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, **own}


def _wait(server: Server, timeout_s: float) -> bool:
    """Whether the server got ready, before it ended and in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{server.http}/v2/health/ready", timeout=5):
                return True
        except OSError:
            time.sleep(_POLL_S)
    return False


def _last_words(log: Path) -> str:
    """What a server said was wrong, in one line, without the time and the place in its source."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    failed = [line.partition("] ")[2] for line in lines if _FAILED in line]
    said = (failed or lines[-1:] or ["it says nothing"])[0]
    return said.partition("\\n")[0].strip('" ')


def _ask(url: str, content: bytes, timeout_s: float) -> Any:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, content), timeout=timeout_s) as answer:
            said = answer.read()
    except urllib.error.HTTPError as error:
        raise NemoEdgeError(f"{url}: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise NemoEdgeError(f"{url} does not answer: {error}") from error
    return json.loads(said) if said else None


def _free_ports() -> tuple[int, int, int]:
    sockets = [socket.socket() for _ in range(3)]
    try:
        for each in sockets:
            each.bind((_LOOPBACK, 0))
        first, second, third = (each.getsockname()[1] for each in sockets)
        return first, second, third
    finally:
        for each in sockets:
            each.close()
