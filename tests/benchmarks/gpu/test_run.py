"""The GPU benchmark without a GPU: its plan, the isolation of what it runs, and a whole smoke run."""

from __future__ import annotations

import json
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from benchmarks.gpu import plan, run, table, tasks
from nemo_edge.system.environment import gpus

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", ["full_plan", "smoke_plan"])
def test_every_item_of_a_plan_has_a_name_of_its_own_and_needs_what_is_in_it(name: str) -> None:
    items = getattr(plan, name)()
    keys = [item.key for item in items]
    assert len(set(keys)) == len(keys)
    assert {need for item in items for need in item.needs} <= set(keys)
    assert {item.name for item in items if isinstance(item, plan.Task)} == set(tasks.TASKS)


def test_the_full_plan_has_every_shape_in_every_type() -> None:
    cases = [item for item in plan.full_plan() if isinstance(item, plan.Case)]
    shapes = {(case.model, case.dtype, case.batch, case.latents) for case in cases}
    assert shapes == {(m, d, b, s) for m in ("sd15", "sdxl") for d in ("fp16", "bf16") for b in (1, 4) for s in (64, 128)}
    assert {name for case in cases for name in case.contenders} == set(table.CONTENDERS)


def test_what_is_chosen_brings_what_it_needs() -> None:
    items = plan.full_plan()
    assert [item.key for item in run.chosen(items, ["answer"])] == ["weights sd15", "export sd15 fp16", "answer sd15"]
    assert run.chosen(items, []) == items


def tell_imported(pipe: Connection) -> None:
    pipe.send("diffusers" in sys.modules)


@pytest.mark.skipif(bool(gpus()), reason="where there is a GPU a process begins from nothing")
def test_without_a_gpu_a_process_begins_with_the_libraries() -> None:
    context = run.fresh()
    here, there = context.Pipe()
    process = context.Process(target=tell_imported, args=(there,))
    process.start()
    assert here.poll(600)
    assert here.recv()
    process.join()


def test_a_contender_that_fails_or_dies_costs_its_own_row_alone(tmp_path: Path) -> None:
    case = plan.Case("sd15", "fp32", 1, 8, ("eager",))
    worker = run.Worker("eager", tmp_path, True)
    try:
        worker.ask("open", case)  # whose weights are not there
        done, why = worker.answer(600)
        assert not done
        assert "weights/sd15" in why
        assert worker.alive
        worker.process.kill()
        worker.ask("turn", 1)
        assert worker.answer(60) == (False, "its process died (exit code -9)")
    finally:
        worker.end()


def test_a_contender_that_is_late_is_ended(tmp_path: Path) -> None:
    worker = run.Worker("eager", tmp_path, True)
    assert worker.answer(0.1) == (False, "not ready after 0 s")
    assert not worker.alive


@pytest.mark.slow
def test_the_smoke_run_measures_all_but_what_needs_a_gpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu.run", "--smoke", "--minutes", "28", "--out", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=1700)
    merged = next(path for path in tmp_path.glob("*.json"))
    results = {result["key"]: result for result in json.loads(merged.read_text())["results"]}
    assert set(results) == {item.key for item in plan.smoke_plan()}
    assert [key for key, result in results.items() if "failed" in result] == []
    rows = [row for result in results.values() for row in result.get("rows", [])]
    assert {row["contender"] for row in rows if "failed" in row} <= {"TensorRT-RTX", "TensorRT"}
    assert max(row["error"] for row in rows if "error" in row) < 1e-4  # every contender computes what eager does
    assert {row["variant"] for row in rows if "variant" in row} == set(plan.ALL_MASKS)
    assert all(made["compiled_s"] > 0 for made in results["answer sd15"]["plans"].values())
    assert results["build"]["eager"] == results["build"]["onnxruntime"] == "cpu" or results["build"]["eager"] == "cuda"
    assert all(results["build"]["gates"].values())
    assert all(row["same_neurons"] == results["decisions"]["prompts"] for row in results["decisions"]["by"].values())
