"""What tests of a running server have in common: a bundle with other neurons, and clients that ask without a pause."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from nemo_edge.bundle.manifest import amend, open_bundle
from nemo_edge.bundle.policies import masked_policies
from nemo_edge.bundle.triggers import calibrate_trigger, embed
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.release.rebake import rebake
from nemo_edge.serving.golden import ask, request
from nemo_edge.serving.server import Server

CLIENTS = 2
LOCAL_RAY: dict[str, Any] = {
    "_node_ip_address": "127.0.0.1",
    "include_dashboard": False,
    "log_to_driver": False,
    "_system_config": {"health_check_initial_delay_ms": 60_000, "health_check_timeout_ms": 60_000, "health_check_failure_threshold": 20},
}
"""What `ray.init` is told for a Ray of a test. Beside other tests its processes may get no core for long, and Ray ends the whole process
that asks, the tests' own, when it holds one for dead."""


def with_other_neurons(bundle: Path, folder: Path) -> Path:
    """The bundle with half of all neurons silenced, in `folder`: its pictures are others."""
    made = shutil.copytree(bundle, folder / "bundle")
    found = NeuronSet.load(made / "neurons.json")
    NeuronSet.empty(found.layers).others(found.total // 2, seed=1).save(folder / "neurons.json")
    rebake(made, folder / "neurons.json")
    return pass_gates(made)


def with_cluster(bundle: Path, folder: Path, name: str, states_BTD: np.ndarray) -> Path:
    """The bundle with policies of two clusters: of half of its neurons, whose one prompt has the first of these text states, and of
    the rest, which nothing triggers."""
    made = shutil.copytree(bundle, folder / "bundle")
    found = NeuronSet.load(made / "neurons.json")
    prompt_BD, others_BD = np.split(embed(states_BTD), [1])
    trigger = calibrate_trigger({name: prompt_BD}, {name: prompt_BD}, others_BD, known=False)
    own = found.subset(len(found) // 2, seed=2)
    policies = masked_policies(found, clusters={name: own, "rest": found - own}, trigger=trigger)
    amend(made, open_bundle(made), lambda staged: policies.save(staged / "policies.json"))
    return made


def pass_gates(bundle: Path) -> Path:
    """Let a bundle count as measured and passed: what is tested with it is how it is shipped."""
    manifest = open_bundle(bundle)
    amend(bundle, manifest.model_copy(update={"passed": True, "gates": ()}), lambda staged: None)
    return bundle


def under_load(server: Server, change: Callable[[], None]) -> list[np.ndarray]:
    """Every picture of clients that ask without a pause, from before a change until after it."""
    asked, done = threading.Semaphore(0), threading.Event()

    def draw(_: int) -> list[np.ndarray]:
        pictures = []
        while not done.is_set():
            pictures.append(ask(server.grpc, request(prompt="a red pig"))["image"])
            asked.release()
        return [*pictures, ask(server.grpc, request(prompt="a red pig"))["image"]]

    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(draw, client) for client in range(CLIENTS)]
        try:
            asked.acquire(timeout=60)
            change()
        finally:
            done.set()
        return [picture for client in clients for picture in client.result()]


def metrics(server: Server) -> str:
    """The server's metrics, as Prometheus reads them."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as answer:
        return str(answer.read().decode())


def logged(server: Server, **wanted: object) -> dict[str, Any]:
    """The newest message of the pipeline that says what is wanted; Triton may write it after the answer is there.

    Triton writes a message as a string of JSON, behind time and place.
    """
    end = time.monotonic() + 30
    while True:
        lines = [line.partition("] ")[2] for line in server.log.read_text().splitlines() if '{\\"event' in line]
        found = [json.loads(json.loads(line)) for line in lines]
        for message in reversed(found):
            if all(message.get(name) == value for name, value in wanted.items()):
                return dict(message)
        assert time.monotonic() < end, f"{wanted} is not among {found[-3:]}"
        time.sleep(0.05)


def wait_for(server: Server, text: str) -> None:
    """Wait until the server's log has a text."""
    end = time.monotonic() + 30
    while text not in server.log.read_text():
        assert time.monotonic() < end, f"{text!r} is not in the log"
        time.sleep(0.05)
