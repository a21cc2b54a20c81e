"""The command line in a process of its own: what it says and leaves with, and a build that is interrupted and goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli.test_main import STAGES, Ran, assert_refused, recipe_in

from nemo_edge.bundle.manifest import open_bundle, verify
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.release.build import build, plan

COMMAND = [sys.executable, "-m", "nemo_edge.cli"]


def test_a_process_says_one_line_and_leaves_with_2(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "build", "none.toml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert_refused(Ran(done.returncode, done.stdout, done.stderr), "recipe none.toml does not exist")
    assert list(tmp_path.iterdir()) == []


def test_a_process_prints_one_json_object(tiny_recipe: Path, tiny_bundle: Path) -> None:
    done = subprocess.run([*COMMAND, "build", tiny_recipe, "--json"], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert (found["skipped"], found["passed"], found["bundle"]) == (True, False, str(tiny_bundle))
    assert done.returncode == 3  # its gates failed: τ is hardly above 0
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("stage", "sign", "sent", "code"),
    [
        ("calibrate", "calibrate-*", signal.SIGTERM, 143),
        ("localize", "localize-*/localization.jsonl", signal.SIGINT, 130),
        ("export", "export-*/.text_encoder.*", signal.SIGTERM, 143),
        ("measure", "measure-*", signal.SIGINT, 130),
    ],
)
def test_an_interrupted_build_leaves_nothing_half_written_and_goes_on(
    tmp_path: Path, tiny_recipe: Path, tiny_bundle: Path, stage: str, sign: str, sent: signal.Signals, code: int
) -> None:
    done, cache = STAGES[: STAGES.index(stage)], tmp_path / ".out.build"
    former = {path.name.partition("-")[0]: path for path in (tiny_bundle.parent / ".out.build").iterdir()}
    for name in done:
        shutil.copytree(former[name], cache / former[name].name)
    path = recipe_in(tmp_path, tiny_recipe)

    process = subprocess.Popen([*COMMAND, "build", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(cache.glob(sign)) and process.poll() is None:
        time.sleep(0.002)
    time.sleep(1 if stage == "export" else 0)  # inside torch's exporter by then
    process.send_signal(sent)
    out, err = process.communicate(timeout=120)
    assert err.splitlines()[-1].startswith("nemo-edge: ")
    assert "goes on from what was finished" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert (process.returncode, out) == (code, "")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.build", "recipe.toml"]
    assert [p for p in cache.rglob("*") if p.name.startswith(".")] == []
    recipe = load_recipe(path)
    assert plan(recipe).done == done

    if stage != "export":  # it would take long, and starts from an empty folder anyway
        shutil.copytree(former["export"], cache / former["export"].name, dirs_exist_ok=True)
        build(recipe)
        assert verify(recipe.output).passed
        assert open_bundle(recipe.output).neurons_hash == open_bundle(tiny_bundle).neurons_hash
