"""A bundle whose engine is OpenVINO: examined, drawn and served by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.bundle.engines import Contents, inspect
from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.release.build import build
from nemo_edge.sampling.generate import Request, draw
from nemo_edge.serving.golden import check_golden, make_golden
from nemo_edge.serving.repository import ship
from nemo_edge.serving.server import Environment, serve

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'nemo-edge[openvino]'")


@pytest.fixture(scope="module")
def bundle(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle, built and judged by OpenVINO."""
    gates = GateSettings(memorization_score=False, schedule_floor=False)
    changes = {"output": tmp_path_factory.mktemp("openvino") / "out", "engine": EngineSettings(backend="openvino"), "gates": gates}
    return Path(build(load_recipe(tiny_recipe).model_copy(update=changes)).bundle)


def test_it_is_examined_by_openvino(bundle: Path) -> None:
    manifest, measured = open_bundle(bundle), Measurement.read(bundle)
    assert manifest.passed, manifest.gates
    assert "openvino" in manifest.versions
    sidecars = {name for name in manifest.files if name.startswith("engines/")}
    assert sidecars == {f"engines/{place}.openvino.cpu.json" for place in ("text_encoder", "unet", "unet_masked", "vae_decoder")}
    contents = inspect(bundle)
    assert isinstance(contents, Contents)
    assert {(each.backend, each.device, each.precision) for each in contents.sessions} == {("openvino", "cpu", "fp32")}
    assert all(0 < variant.trajectory.largest_error <= 1e-4 for variant in measured.variants)  # it is not eager, and near it


def test_it_draws_what_onnx_runtime_draws(bundle: Path, tmp_path: Path) -> None:
    own, other = (draw(bundle, Request("a red pig", seed=3, backend=b), tmp_path / f"{b}.png") for b in (None, "onnxruntime"))
    pictures = [np.asarray(Image.open(path)).astype(int) for path in (*own, *other)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.triton
def test_a_server_draws_with_it(bundle: Path, triton_environment: Environment, tmp_path: Path) -> None:
    """The golden picture is made by the bundle's own engines in this process, and asked of the server."""
    golden = make_golden(bundle)
    ship(bundle, tmp_path / "repository")
    with serve(tmp_path / "repository", triton_environment, lambda server: check_golden(golden, server.grpc)) as server:
        assert server.process.poll() is None
    assert '"openvino"' in (tmp_path / "repository" / "unet" / "1" / "version.json").read_text().replace(" ", "")
