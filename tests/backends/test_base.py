"""Whatever runs a component is a runner: the same members, and a context that it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.backends import onnxruntime, torch
from nemo_edge.backends.base import Runner
from nemo_edge.model.checkpoint import Checkpoint


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_runners_take_and_give_named_arrays(toy: Checkpoint, tiny_bundle: Path, backend: str) -> None:
    runner: Runner = (
        torch.open_runner(toy.unet_component()) if backend == "torch" else onnxruntime.open_runner(tiny_bundle / "unet" / "model.onnx")
    )
    with runner as entered:
        assert entered is runner
        assert {"sample", "timestep", "encoder_hidden_states"} <= set(runner.inputs)
        assert runner.inputs["sample"][1] == 4
