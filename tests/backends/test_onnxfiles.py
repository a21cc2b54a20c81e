"""The one that the recipe names runs the file; both do the same with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.test_onnxruntime import MODEL, feed, save_graph
from nemo_edge.backends import onnxfiles
from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.backends.openvino import OpenVinoRunner
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.errors import MissingDependency

ENGINES = [
    (EngineSettings(threads=1), OnnxRuntimeRunner, "unet.onnxruntime.cpu.json"),
    (EngineSettings(backend="openvino", threads=1), OpenVinoRunner, "unet.openvino.cpu.json"),
]


@pytest.mark.parametrize(("engine", "kind", "sidecar"), ENGINES, ids=["onnxruntime", "openvino"])
def test_the_named_one_compiles_and_opens(tmp_path: Path, engine: EngineSettings, kind: type, sidecar: str) -> None:
    save_graph(tmp_path / MODEL)
    onnxfiles.probe(engine)
    onnxfiles.compile_engine(tmp_path, "unet", MODEL, engine)
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [sidecar]
    for opened in (onnxfiles.open_engine(tmp_path, "unet", engine), onnxfiles.open_runner(tmp_path / MODEL, engine)):
        with opened as runner:
            assert type(runner) is kind
            assert np.array_equal(runner(feed())["out_sample"], feed()["sample"] * feed()["value_mask"])
    assert onnxfiles.describe(engine)["backend"] == engine.backend


@pytest.mark.parametrize("engine", [EngineSettings(provider="cuda"), EngineSettings(backend="openvino", device="npu")])
def test_what_does_not_run_here_is_told_before_the_work(engine: EngineSettings) -> None:
    try:
        onnxfiles.probe(engine)
    except MissingDependency as error:
        assert "install" in str(error)  # noqa: PT017
    else:
        pytest.skip(f"{engine.backend} runs on {engine.provider} or {engine.device} here")
