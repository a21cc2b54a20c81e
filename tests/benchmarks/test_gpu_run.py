"""The GPU benchmark without a GPU: its plan, the isolation of what it runs, what it makes of results, and a whole smoke run."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    paths = [str(BENCHMARKS / "gpu"), str(BENCHMARKS)]
    sys.path[:0] = paths
    yield {name: importlib.import_module(name) for name in ("plan", "run", "tasks", "gputable")}
    for path in paths:
        sys.path.remove(path)


@pytest.mark.parametrize("name", ["full_plan", "smoke_plan"])
def test_every_item_of_a_plan_has_a_name_of_its_own_and_needs_what_is_in_it(modules: dict[str, ModuleType], name: str) -> None:
    plan = getattr(modules["plan"], name)()
    keys = [item.key for item in plan]
    assert len(set(keys)) == len(keys)
    assert {need for item in plan for need in item.needs} <= set(keys)
    assert {item.name for item in plan if isinstance(item, modules["plan"].Task)} == set(modules["tasks"].TASKS)


def test_the_full_plan_has_every_shape_in_every_type(modules: dict[str, ModuleType]) -> None:
    cases = [item for item in modules["plan"].full_plan() if isinstance(item, modules["plan"].Case)]
    shapes = {(case.model, case.dtype, case.batch, case.latents) for case in cases}
    assert shapes == {(m, d, b, s) for m in ("sd15", "sdxl") for d in ("fp16", "bf16") for b in (1, 4) for s in (64, 128)}
    assert {name for case in cases for name in case.contenders} == set(modules["gputable"].CONTENDERS)


def test_what_is_chosen_brings_what_it_needs(modules: dict[str, ModuleType]) -> None:
    plan = modules["plan"].full_plan()
    assert [item.key for item in modules["run"].chosen(plan, ["answer"])] == ["weights sd15", "export sd15 fp16", "answer sd15"]
    assert modules["run"].chosen(plan, []) == plan


def test_a_contender_that_fails_or_dies_costs_its_own_row_alone(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    case = modules["plan"].Case("sd15", "fp32", 1, 8, ("eager",))
    worker = modules["run"].Worker("eager", tmp_path, True)
    try:
        worker.ask("open", case)  # whose weights are not there
        done, why = worker.answer(120)
        assert not done
        assert "weights/sd15" in why
        assert worker.alive
        worker.process.kill()
        worker.ask("turn", 1)
        assert worker.answer(30) == (False, "its process died (exit code -9)")
    finally:
        worker.end()


def test_a_contender_that_is_late_is_ended(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    worker = modules["run"].Worker("eager", tmp_path, True)
    assert worker.answer(0.1) == (False, "not ready after 0 s")
    assert not worker.alive


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16", "attention"),
        ("nvjet_sm90_hsh_192x192_64x4_2x1_v_bz_coopB_bias_TNN", "matrix product"),
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_f32_nhwckrsc_nhwc", "convolution"),
        ("void at::native::RowwiseMomentsCUDAKernel<c10::Half>", "normalization"),
        ("void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda", "layout and copies"),
        ("void at::native::vectorized_elementwise_kernel<8, CUDAFunctor_add<c10::Half>>", "elementwise"),
        ("something new", "other"),
    ],
)
def test_kernels_are_told_apart_by_their_names(modules: dict[str, ModuleType], kernel: str, kind: str) -> None:
    assert modules["tasks"].kind_of(kernel) == kind


def test_the_table_says_what_was_not_measured_and_shares_of_the_limit(modules: dict[str, ModuleType]) -> None:
    row = {"contender": "eager, channels_last", "variant": "baked", "p50_ms": 20.0}
    faster = {"contender": "CUDA graph", "variant": "baked", "p50_ms": 10.0, "to_reference": {"value": 0.5, "low": 0.4, "high": 0.6}}
    masked = {**faster, "variant": "masked", "to_baked": {"value": 1.25, "low": 1.2, "high": 1.3}}
    about = {"model": "sd15", "dtype": "fp16", "batch": 1, "latents": 64}
    found: dict[str, Any] = {
        "machine": {"gpus": [{"name": "NVIDIA X1", "driver": "1"}], "versions": {"torch": "2"}, "cores": 4},
        "results": [
            {"key": "card", "flop_per_s": {"fp16": 1e12}, "bytes_per_s": 1e12},
            {"key": "limits", "sd15 fp16 batch 1 latents 64": {"flops": 4e9, "bytes": 5e9}},
            {"key": "sd15 fp16 batch 1 latents 64", **about, "rows": [row, faster, masked]},
            {"key": "build", "failed": "no time"},
        ],
    }
    text = "\n".join(modules["gputable"].gpu_table(found))
    assert "| eager, channels_last | 20.0 · 25% |" in text  # 5 ms of bytes, 4 of FLOPs
    assert "| CUDA graph | 10.0 · 0.50 (0.40–0.60) · 50% |" in text
    assert "| TensorRT-RTX | not measured |" in text
    assert "1.2500 to 1.2500 times" in text
    assert "anything in bf16; SD 1.5 fp16, 4 pictures of 512²; SD XL fp16, 1 picture of 1024²" in text


@pytest.mark.slow
def test_the_smoke_run_measures_all_but_what_needs_a_gpu(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu" / "run.py"), "--smoke", "--minutes", "9", "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=570)
    merged = next(path for path in tmp_path.glob("*.json"))
    results = {result["key"]: result for result in json.loads(merged.read_text())["results"]}
    assert set(results) == {item.key for item in modules["plan"].smoke_plan()}
    assert [key for key, result in results.items() if "failed" in result] == []
    rows = [row for result in results.values() for row in result.get("rows", [])]
    assert {row["contender"] for row in rows if "failed" in row} <= {"TensorRT-RTX", "TensorRT"}
    assert max(row["error"] for row in rows if "error" in row) < 1e-4  # every contender computes what eager does
    assert {row["variant"] for row in rows if "variant" in row} == set(modules["plan"].ALL_MASKS)
    assert all(plan["compiled_s"] > 0 for plan in results["answer sd15"]["plans"].values())
    assert results["build"]["eager"] == results["build"]["onnxruntime"] == "cpu" or results["build"]["eager"] == "cuda"
    assert all(results["build"]["gates"].values())
    assert all(row["same_neurons"] == results["decisions"]["prompts"] for row in results["decisions"]["by"].values())
