"""An open engine on a GPU: its weights, its settings and its compiled kernels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backends.tensorrt.plan_graphs import save_attention_graph, shapes
from nemo_edge.backends.tensorrt._run import refit_weights
from nemo_edge.backends.tensorrt.backend import available, compile_engine, open_engine
from nemo_edge.backends.tensorrt.flavours import fit_here
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.recipe.targets import TensorRtRtxSettings, TensorRtSettings
from nemo_edge.system.environment import gpus
from nemo_edge.system.errors import InputError

MODEL = "unet/model.onnx"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")]


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


def feed_of(rows: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "sample": rng.standard_normal((rows, 4, 8, 8), np.float32),
        "states": rng.standard_normal((rows, 8, 32), np.float32),
        "value_mask": np.ones((rows, 32), np.float32),
    }


@pytest.mark.parametrize("settings", [{"version_compatible": True}, {"weight_streaming": True}], ids=lambda s: next(iter(s)))
def test_an_engine_built_otherwise_answers_the_same(tmp_path: Path, settings: dict[str, bool]) -> None:
    """Streamed weights with all of them in host memory, and as many on the GPU as have room."""
    if "tensorrt" not in available():
        pytest.skip("tensorrt is not installed")
    save_attention_graph(tmp_path / MODEL)
    answers = []
    for chosen in ({}, settings):
        built = compile_engine(tmp_path, "unet", MODEL, "tensorrt", TensorRtSettings.model_validate(chosen), (shapes(),), "fp16")
        assert (next(iter(settings)).upper() in built.flags) == bool(chosen)
        for budget in (None, 0):
            with open_engine(tmp_path, "unet", "tensorrt", weight_budget=budget) as engine:
                answers += [engine(feed_of())["out_sample"], engine(feed_of())["out_sample"]]
    assert max(np.abs(answer - answers[0]).max() for answer in answers) < 2e-2 * np.abs(answers[0]).max()


def test_kernels_compiled_here_are_kept_for_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tensorrt-rtx" not in available():
        pytest.skip("tensorrt-rtx is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_attention_graph(tmp_path / MODEL)
    built = compile_engine(tmp_path, "unet", MODEL, "tensorrt-rtx", TensorRtRtxSettings(), (shapes(),), "fp16")
    fit = fit_here(tmp_path, built)
    if not fit.runs:
        pytest.skip(fit.reason)
    answers, written = [], []
    for _ in range(2):
        with open_engine(tmp_path, "unet", "tensorrt-rtx") as engine:
            answers.append(engine(feed_of())["out_sample"])
        (path,) = (tmp_path / "cache" / "nemo-edge" / "tensorrt-rtx").iterdir()
        written.append(path.stat())
    assert written[0].st_size > 0
    assert written[1].st_ino != written[0].st_ino  # written again, to another name first
    assert np.abs(answers[1] - answers[0]).max() < 2e-2 * np.abs(answers[0]).max()
