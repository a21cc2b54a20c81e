"""The Python of README and docs runs as it stands, on the demo checkpoint and its bundle, in a folder with the checkout's names."""

from __future__ import annotations

import json
import re
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from served import LOCAL_RAY

from nemo_edge import demo
from nemo_edge.recipe.prompts import read_prompts
from nemo_edge.release.build import BuildResult
from nemo_edge.serving.repository import ship
from nemo_edge.system.errors import InputError

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCKS = [
    block for page in PAGES for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
]
PROMPT = "saxophone falafel jubilee"
LOOPBACK = LOCAL_RAY["_node_ip_address"]


@pytest.fixture(scope="module")
def home(demo_build: BuildResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages' lines name: the demo checkpoint, and the bundle that the demo's recipe makes of it."""
    assert demo_build.passed, [gate for gate in demo_build.manifest.gates if not gate.passed]
    folder = tmp_path_factory.mktemp("home")
    (folder / "nemo_edge" / "demo").mkdir(parents=True)
    (folder / "nemo_edge" / "demo" / "checkpoint").symlink_to(demo.CHECKPOINT)
    shutil.copytree(demo_build.bundle, folder / "engines" / "out" / "demo")
    return folder


@pytest.fixture
def inside(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, and this process in it."""
    monkeypatch.chdir(home)
    return home


def block_with(text: str) -> str:
    """The one block of Python with this text in it."""
    (found,) = [block for block in BLOCKS if text in block]
    return found


def is_training_picture(picture: Any) -> bool:
    """Whether a picture is nearly the one that the prompt was trained with."""
    known = read_prompts(demo.PROMPTS / "memorized.csv")[0]
    assert known.text == PROMPT
    assert known.image is not None
    one, other = (np.asarray(each.convert("RGB")) / 255 for each in (picture, Image.open(known.image)))
    return bool(np.sqrt(np.square(one - other).mean()) < 0.2)


def test_every_block_is_run_here() -> None:
    assert {block_with("after.png"), block_with("pipe.policy"), block_with("serve.run")} == set(BLOCKS)


def test_a_picture_in_three_lines(inside: Path) -> None:
    torch.manual_seed(0)
    exec(block_with("after.png"), {})
    assert not is_training_picture(Image.open("after.png"))


def test_engines_in_diffusers_own_pipelines(inside: Path) -> None:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(block_with("pipe.policy"), names)
    assert is_training_picture(names["before"])
    assert [is_training_picture(names[name]) for name in ("after", "picture")] == [False, False]
    assert [is_training_picture(picture) for picture in names["pictures"]] == [False, False]
    with pytest.raises(InputError, match="this runner is closed"):
        names["own"](PROMPT)


@pytest.fixture
def ray_url(inside: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A Ray of two cores on the loopback, whose Serve listens there, and the bundle shipped where the page's line ships it."""
    pytest.importorskip("tritonclient.grpc")
    pytest.importorskip("ray.serve", reason="Ray Serve is not here: pip install 'nemo-edge[ray]'")
    import ray
    from ray import serve

    assert "nemo-edge ship engines/out/demo --to engines/out/models\n" in (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    ship(Path("engines/out/demo"), Path("engines/out/models"))
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "45")
    ray.init(num_cpus=2, num_gpus=0, object_store_memory=80 << 20, **LOCAL_RAY)
    try:
        serve.start(http_options={"host": LOOPBACK, "port": port})
        yield f"http://{LOOPBACK}:{port}/"
    finally:
        with suppress(Exception):  # whatever it says, Ray ends
            serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
def test_a_repository_on_ray(ray_url: str) -> None:
    exec(block_with("serve.run"), {})
    for policy, expected in (("always", False), ("off", True)):
        content = json.dumps({"prompt": PROMPT, "seed": 3, "policy": policy}).encode()
        with urllib.request.urlopen(urllib.request.Request(ray_url, content), timeout=120) as answer:
            assert is_training_picture(Image.open(BytesIO(answer.read()))) == expected
