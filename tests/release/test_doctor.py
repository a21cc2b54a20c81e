"""The diagnosis of this very machine, and what the command line makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_edge import __version__, demo
from nemo_edge.cli import console
from nemo_edge.release import doctor
from nemo_edge.release._footprint import fitted, needs_of
from nemo_edge.release.doctor import Diagnosis, diagnose
from nemo_edge.system.compatibility import Problem

COMMAND = [sys.executable, "-m", "nemo_edge.cli", "doctor"]


@pytest.fixture(scope="module")
def diagnosis() -> Diagnosis:
    return diagnose(str(demo.CHECKPOINT))


def test_this_machine_can_build(diagnosis: Diagnosis) -> None:
    assert diagnosis.passed
    assert diagnosis.nemo_edge == __version__
    assert diagnosis.model is not None
    assert diagnosis.model.fits
    assert Diagnosis.model_validate_json(diagnosis.model_dump_json()) == diagnosis


def test_a_broken_need_fails_and_a_missing_option_does_not(diagnosis: Diagnosis) -> None:
    harmless = Problem(what="a", why="b", remedy="c")
    assert diagnosis.model_copy(update={"problems": (harmless,)}).passed
    assert not diagnosis.model_copy(update={"problems": (harmless.model_copy(update={"breaks_build": True}),)}).passed
    lame = tuple(p.model_copy(update={"runs": False}) if p.name == "onnxruntime cpu" else p for p in diagnosis.backends)
    assert not diagnosis.model_copy(update={"backends": lame}).passed
    bare = tuple(p.model_copy(update={"runs": p.provider == "cpu"}) for p in diagnosis.backends)
    assert diagnosis.model_copy(update={"backends": bare}).passed


def test_a_person_is_told_what_to_do(diagnosis: Diagnosis, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    problem = Problem(
        what="torch 2.9 is installed", why="nemo-edge needs torch>=2.10", remedy="pip install 'torch>=2.10'", breaks_build=True
    )
    console.show_diagnosis(diagnosis.model_copy(update={"problems": (problem,)}))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert all(len(line) <= 80 for line in lines if not line.startswith("  "))  # a command is one line, however long
    assert lines[lines.index("torch 2.9 is installed:") + 1] == "  pip install 'torch>=2.10'"
    assert "torch 2.9 is installed: nemo-edge needs torch>=2.10" in lines
    assert lines[-1] == "nemo-edge build does not work here: see what to do above"
    for probe in diagnosis.backends:
        assert probe.name in out
        assert all(word in out for word in probe.reason.split())


def test_a_model_that_does_not_fit_is_told(
    diagnosis: Diagnosis, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert diagnosis.model is not None
    tight = fitted("m", "sd", diagnosis.model.parts, needs_of(diagnosis.model.parts, 128**2, 1, 10**12), 1, 10**12, Path("/out"))
    console.show_diagnosis(diagnosis.model_copy(update={"model": tight}))
    lines = capsys.readouterr().out.splitlines()
    assert lines[lines.index("the model:") + 1].startswith("  use a machine with ")
    assert lines[-1].endswith("but the model does not fit")


def test_the_command_prints_one_json_object() -> None:
    done = subprocess.run([*COMMAND, "--model", str(demo.CHECKPOINT), "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["schema_version"], found["passed"], found["model"]["fits"]) == (1, True, True)


def test_the_command_leaves_with_4_when_build_cannot_work(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['onnxscript'] = None\n")
    done = subprocess.run(
        COMMAND, capture_output=True, text=True, check=False, env={"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}", "COLUMNS": "80"}
    )
    assert (done.returncode, done.stderr) == (4, "")
    assert "onnxscript cannot be imported" in done.stdout
    assert "pip install --force-reinstall onnxscript" in done.stdout


@pytest.mark.parametrize("name", ["none", "runwayml/stable-diffusion-v1-5", "model.ckpt"])
def test_a_model_that_is_not_there_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"a pickle")
    given = str(tmp_path / name) if name == "model.ckpt" else name
    done = subprocess.run([*COMMAND, "--model", given], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"nemo-edge: model {given} ")
    assert done.stderr.count("\n") == 1


def test_a_cpu_without_instructions_for_integers_is_told_and_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "int8_products", lambda: "overflows")
    found = diagnose()
    (told,) = [problem for problem in found.problems if "8-bit integers" in problem.what]
    assert "OpenVINO, whose sums overflow, is refused" in told.why
    assert found.passed
    monkeypatch.setattr(doctor, "int8_products", lambda: "fast")
    assert told not in diagnose().problems
