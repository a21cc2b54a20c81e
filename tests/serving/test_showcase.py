"""The demonstration for a person, as a process: what it prints works, and a signal drains it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tritonclient.grpc")

from nemo_edge.sampling.generate import Request, draw
from nemo_edge.serving.golden import LEVELS, Golden, ask, request
from nemo_edge.serving.server import Environment

PROMPT = "saxophone falafel jubilee"


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "nemo_edge.serving.showcase", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_without_a_server_it_says_how_to_get_one_and_leaves_with_4(shippable: Path, tmp_path: Path) -> None:
    process = start(shippable, "--environment", tmp_path)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (4, "")
    assert err.splitlines() == [f"nemo-edge: {tmp_path} has no Triton server: `make triton` makes it"]


@pytest.fixture(scope="module")
def process(triton_environment: Environment, shippable: Path) -> Iterator[subprocess.Popen[str]]:
    running = start(shippable, "--environment", triton_environment.folder)
    yield running
    running.terminate()  # not a kill, which would leave the server alone
    running.wait()


@pytest.fixture(scope="module")
def words(process: subprocess.Popen[str]) -> str:
    return until_it_waits(process)


def until_it_waits(process: subprocess.Popen[str]) -> str:
    """All that it prints before it waits."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if 'save("python.png")' in line:
            return "".join(lines)
    assert process.stderr is not None
    raise AssertionError(f"it ended: {process.stderr.read()}")


@pytest.fixture(scope="module")
def own(shippable: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The library's picture of the prompt it shows."""
    (path,) = draw(shippable, Request(PROMPT, variant="masked"), tmp_path_factory.mktemp("own") / "p.png")
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.triton
def test_the_lines_it_prints_return_the_library_s_picture(words: str, own: np.ndarray, tmp_path: Path) -> None:
    shell, code = words.partition("With curl:")[2].split("With Python:")
    subprocess.run(["bash", "-ec", shell], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    for name in ("curl.png", "python.png"):
        assert np.abs(np.asarray(Image.open(tmp_path / name)) - own).max() <= LEVELS


@pytest.mark.triton
def test_sigterm_ends_it_once_the_pictures_that_were_begun_are_drawn(process: subprocess.Popen[str], words: str, golden: Golden) -> None:
    """The last of this process's tests."""
    found = re.search(r"gRPC (\S+),", words)
    assert found
    several = {**request(steps=999), "prompt": np.array([PROMPT.encode()] * 4, object)}
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(ask, found[1], several)
        time.sleep(0.5)
        assert not begun.done()
        process.send_signal(signal.SIGTERM)
        pictures = begun.result()["image"]
    assert pictures.shape == (4, *golden.picture.shape[1:])
    assert process.wait(60) == 143


@pytest.mark.triton
def test_ctrl_c_is_its_end(triton_environment: Environment, shippable: Path) -> None:
    process = start(shippable, "--environment", triton_environment.folder)
    until_it_waits(process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, [line for line in err.splitlines() if line.startswith("nemo-edge:")]) == (0, [])
