"""An open engine. Most of it takes a GPU; where compiled kernels are kept does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from plan_graphs import save_attention_graph, shapes

from nemo_edge.backends.running import refit_weights, runtime_cache_path
from nemo_edge.backends.tensorrt import available, compile_engine, open_engine
from nemo_edge.environment import gpus
from nemo_edge.errors import InputError
from nemo_edge.graphs import open_graph
from nemo_edge.plans import PlanFile
from nemo_edge.targets import TensorRtSettings

MODEL = "unet/model.onnx"


def plan(**changes: object) -> PlanFile:
    fields = {
        "component": "unet",
        "backend": "tensorrt-rtx",
        "version": "1.7.1.116",
        "plan": "engines/unet.tensorrt-rtx.sm86.engine",
        "size_bytes": 1,
        "model": MODEL,
        "graph_hash": "h",
        "targets": ("sm86",),
        "system": "Linux and Windows",
        "dtype": "fp16",
        "inputs": {},
        "outputs": {},
        "profiles": (),
        "flags": (),
        "settings": {},
        "reproducible": True,
        "build_s": 1.0,
    }
    return PlanFile.model_validate({**fields, **changes})


def test_kernels_are_kept_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = runtime_cache_path(plan(), "NVIDIA RTX 4090", "580.65")
    assert path.parent == tmp_path / "nemo-edge" / "tensorrt-rtx"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert runtime_cache_path(plan(), "g", "d").is_relative_to(tmp_path / "home" / ".cache" / "nemo-edge")


def test_another_plan_gpu_or_driver_has_kernels_of_its_own() -> None:
    own = runtime_cache_path(plan(), "RTX 4090", "580")
    assert runtime_cache_path(plan(build_s=2.0), "RTX 4090", "580") == own
    others = [
        runtime_cache_path(plan(graph_hash="other"), "RTX 4090", "580"),
        runtime_cache_path(plan(version="1.8.0.1"), "RTX 4090", "580"),
        runtime_cache_path(plan(), "RTX 3090", "580"),
        runtime_cache_path(plan(), "RTX 4090", "590"),
    ]
    assert len({own, *others}) == 5


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_weights_change_there_and_back_again(tmp_path: Path) -> None:
    """A, B, A: an engine that keeps a part of B is wrong (NVIDIA/TensorRT#3628)."""
    if "tensorrt" not in available():
        pytest.skip("tensorrt is not installed")
    save_attention_graph(tmp_path / MODEL)
    compile_engine(tmp_path, "unet", MODEL, "tensorrt", TensorRtSettings(refit="all"), (shapes(),), "fp16")
    own = open_graph(tmp_path / MODEL).read(["to_v0"])
    silenced = {"to_v0": np.zeros_like(own["to_v0"])}
    rng = np.random.default_rng(0)
    feed = {
        "sample": rng.standard_normal((2, 4, 8, 8), np.float32),
        "states": rng.standard_normal((2, 8, 32), np.float32),
        "value_mask": np.ones((2, 32), np.float32),
    }
    with open_engine(tmp_path, "unet", "tensorrt") as engine:
        first = engine(feed)["out_sample"]
        masked = engine({**feed, "value_mask": np.zeros((2, 32), np.float32)})["out_sample"]
        refit_weights(engine, silenced)
        assert np.abs(engine(feed)["out_sample"] - masked).max() < 1e-2
        refit_weights(engine, own)
        assert np.array_equal(engine(feed)["out_sample"], first)
        with pytest.raises(InputError, match=r"to_v0 has 1024 values of float32, but the engine takes 1024 of float16"):
            refit_weights(engine, {"to_v0": own["to_v0"].astype(np.float32)})
        with pytest.raises(InputError, match=r"nowhere cannot be changed in this engine"):
            refit_weights(engine, {"nowhere": own["to_v0"]})
