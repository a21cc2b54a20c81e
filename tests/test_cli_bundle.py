"""The commands about finished bundles: in their place in the help, and with the backend that is asked for."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import plans
import pytest
import test_cli
from test_cli import Run, assert_refused

from nemo_edge import cli_bundle
from nemo_edge.bundle import amend, open_bundle
from nemo_edge.environment import gpus

run = test_cli.run
COMMANDS = [
    "build",
    "calibrate",
    "detect",
    "localize",
    "export",
    "rebake",
    "bench",
    "compare",
    "gate",
    "report",
    "verify",
    "generate",
    "inspect",
    "ship",
    "kserve",
    "doctor",
]


def test_the_help_names_every_command_in_the_order_of_their_use(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run("--help").out.partition("Commands:")[2]
    assert re.findall(r"(?m)^  (\w+)", shown) == COMMANDS
    assert set(cli_bundle.__all__) - {"register"} == set(COMMANDS[5:13])


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = run(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert max(map(len, shown.out.splitlines())) <= 80
    assert f"nemo-edge {command}" in shown.out


def test_generate_draws_with_the_backend_that_is_asked_for(run: Run, tmp_path: Path, tiny_bundle: Path) -> None:
    own, asked = tmp_path / "own.png", tmp_path / "asked.png"
    assert run("generate", tiny_bundle, "a red pig", "--steps", 1, "-o", own).code == 0
    assert run("generate", tiny_bundle, "a red pig", "--steps", 1, "-o", asked, "--backend", "onnxruntime").code == 0
    assert own.read_bytes() == asked.read_bytes()


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("openvino", "--backend openvino: input should be 'onnxruntime', 'tensorrt' or 'tensorrt-rtx'"),
        ("tensorrt", "has no TensorRT engine of text_encoder: build it with [tensorrt] in the recipe"),
    ],
)
def test_a_backend_that_a_bundle_has_no_engines_for_is_refused(
    run: Run, tmp_path: Path, tiny_bundle: Path, backend: str, reason: str
) -> None:
    assert_refused(run("generate", tiny_bundle, "a red pig", "-o", tmp_path / "p.png", "--backend", backend), reason)
    assert not (tmp_path / "p.png").exists()


@pytest.mark.skipif(bool(gpus()), reason="there is an NVIDIA GPU")
def test_engines_that_do_not_run_here_leave_with_4_before_one_is_opened(
    run: Run, tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")

    def change(staged: Path) -> None:
        for place in ("text_encoder", "unet", "vae_decoder"):
            name = f"engines/{place}.tensorrt.sm90.plan"
            plans.write(staged, plans.standard(), plans.standard_sidecar(component=place, plan=name), name)

    amend(bundle, open_bundle(bundle), change)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    ran = run("generate", bundle, "a red pig", "-o", tmp_path / "p.png", "--backend", "tensorrt")
    reason = "built for TensorRT 11.4.0.106 and sm90; this machine has no TensorRT and no NVIDIA GPU with a driver: `pip install "
    assert_refused(ran, "the TensorRT engine of text_encoder", reason, code=4)
