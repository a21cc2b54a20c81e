"""Contenders take turns in processes of their own, and what goes wrong in one is told in the parent. No time is asserted."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest

from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.measure import bench as benching
from nemo_edge.measure._contender import Runnable
from nemo_edge.measure.bench import bench, runnables, unfit
from nemo_edge.measure.latency import Latency
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import LatencySettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.errors import InputError, MissingDependency
from nemo_edge.system.progress import Advance, Progress

QUICK = LatencySettings(runs=2, seconds=0.05, warmup_s=0.05, threads=1, beside=())
CONTENDERS = ["eager", "unmitigated", "baked", "masked"]
SHARED = ["eager", "baked"]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


@pytest.fixture(scope="module")
def contenders(recipe: Recipe, tiny_bundle: Path) -> tuple[Runnable, ...]:
    return runnables(tiny_bundle, recipe, QUICK, recipe.checkpoint.path)


def only(contenders: tuple[Runnable, ...], name: str) -> Runnable:
    return next(c for c in contenders if c.name == name)


@pytest.fixture(scope="module")
def latency(recipe: Recipe, contenders: tuple[Runnable, ...]) -> Latency:
    return bench(contenders, recipe.sampling, QUICK)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def test_the_contenders_are_eager_and_every_engine(recipe: Recipe, tiny_bundle: Path, contenders: tuple[Runnable, ...]) -> None:
    assert [c.name for c in contenders] == CONTENDERS
    assert [c.kind for c in contenders] == ["eager", "engine", "engine", "engine"]
    assert all(c.weights_mib > 0 and c.engine.threads == 1 for c in contenders)
    assert (
        [c.name for c in contenders if "text_encoder" in c.targets] == [c.name for c in contenders if "vae_decoder" in c.targets] == SHARED
    )
    without = runnables(tiny_bundle, recipe, QUICK, None)
    assert [c.name for c in without] == CONTENDERS[1:]
    assert [
        c.name for c in runnables(tiny_bundle, recipe, QUICK.model_copy(update={"eager": False}), recipe.checkpoint.path)
    ] == CONTENDERS[1:]
    shared = QUICK.model_copy(update={"targets": ("text_encoder",)})
    assert [c.name for c in runnables(tiny_bundle, recipe, shared, recipe.checkpoint.path)] == SHARED  # the others have nothing to do
    alone = recipe.model_copy(update={"export": recipe.export.model_copy(update={"variants": ("masked",)})})
    assert [c.name for c in runnables(tiny_bundle, alone, QUICK, None)] == ["masked"]


def test_tensorrt_s_engines_are_timed_without_an_unmitigated_one_beside_eager_on_the_gpu(recipe: Recipe, tiny_bundle: Path) -> None:
    engine, export = EngineSettings(backend="tensorrt-rtx"), recipe.export.model_copy(update={"dtype": "fp16"})
    found = runnables(tiny_bundle, recipe.model_copy(update={"engine": engine, "export": export}), QUICK, recipe.checkpoint.path)
    assert [c.name for c in found] == ["eager", "baked", "masked"]
    assert {(c.engine.backend, c.engine.torch_device, c.engine.threads, c.dtype) for c in found} == {("tensorrt-rtx", "cuda", 1, "fp16")}


def test_what_is_timed_beside_comes_before_the_recipes_own_engines(
    recipe: Recipe, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "bf16_instructions", lambda: True)
    wanted = QUICK.model_copy(update={"beside": ("openvino fp32", "onnxruntime", "eager bf16"), "compiled": False})
    found = runnables(tiny_bundle, recipe, wanted, recipe.checkpoint.path)
    assert [c.name for c in found] == ["eager", "eager bf16", "openvino fp32", "onnxruntime", *CONTENDERS[1:]]
    assert [(c.kind, c.dtype) for c in found[:3]] == [("eager", "fp32"), ("eager", "bf16"), ("engine", "fp32")]
    assert (found[2].engine.backend, found[2].engine.threads, found[2].variant) == ("openvino", 1, "baked")
    assert [c.name for c in runnables(tiny_bundle, recipe, wanted, None)][:2] == ["openvino fp32", "onnxruntime"]
    engines_alone = wanted.model_copy(update={"eager": False})
    assert "eager bf16" not in [c.name for c in runnables(tiny_bundle, recipe, engines_alone, recipe.checkpoint.path)]


def test_a_type_that_the_cpu_only_imitates_is_left_out_and_told(recipe: Recipe, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benching, "bf16_instructions", lambda: False)
    monkeypatch.setattr("nemo_edge.backends.openvino.capabilities", lambda device: ("fp32",))
    own = recipe.engine
    assert unfit("eager bf16", own) == unfit("openvino bf16", own) == "this CPU has no instructions for bf16"
    assert unfit("openvino fp16", own) == "this CPU has no instructions for fp16"
    assert unfit("openvino fp32", own) == unfit("onnxruntime", own) == unfit("eager bf16", EngineSettings(provider="cuda")) == ""
    changes = {"beside": ("eager bf16", "openvino bf16", "openvino fp32"), "targets": ("text_encoder",)}
    settings, notes = QUICK.model_copy(update=changes), list[str]()
    contenders = runnables(tiny_bundle, recipe, settings, recipe.checkpoint.path)
    assert [c.name for c in contenders] == ["eager", "openvino fp32", "baked"]

    class Noting(Progress):
        def note(self, message: str) -> None:
            notes.append(message)

    found = bench(contenders, recipe.sampling, settings, Noting())
    assert found.left_out == dict.fromkeys(("eager bf16", "openvino bf16"), "this CPU has no instructions for bf16")
    assert notes == [f"{name} is not timed: {why}" for name, why in found.left_out.items()]
    assert [(c.name, c.backend.split()[0], c.provider) for c in found.contenders][1] == ("openvino fp32", "openvino", "cpu")
    assert "openvino fp32" in {ratio.contender for ratio in found.cases[0].ratios}


def test_compiled_needs_a_compiler(recipe: Recipe, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = QUICK.model_copy(update={"compiled": True})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependency, match=r"install g\+\+, or set latency\.compiled = false"):
        runnables(tiny_bundle, recipe, wanted, "c")


def test_every_case_has_its_contenders_in_order(latency: Latency) -> None:
    assert [case.target for case in latency.cases] == ["text_encoder", "unet", "vae_decoder", "pipeline"]
    for case in latency.cases:
        expected = SHARED if case.target in ("text_encoder", "vae_decoder") else CONTENDERS
        assert [t.contender for t in case.timings] == expected
        assert (case.batch, case.height, case.width) == (1, 32, 32)
        assert case.steps == (3 if case.target == "pipeline" else None)


def test_every_pair_has_its_ratio(latency: Latency) -> None:
    for case in latency.cases:
        names = [t.contender for t in case.timings]
        pairs = [(names[i], names[j]) for i in range(len(names)) for j in range(i)]
        assert [(r.contender, r.reference) for r in case.ratios] == pairs
        assert all(r.rounds == 2 and 0 < r.low <= r.value <= r.high for r in case.ratios)
    assert latency.ratio("unet", "masked", "baked") is not None
    assert latency.ratio("unet", "baked", "unmitigated") is not None


def test_every_round_is_kept_and_covers_its_time(latency: Latency) -> None:
    for case in latency.cases:
        for timing in case.timings:
            assert [len(samples) > 0 for samples in timing.samples_ms] == [True, True]
            assert timing.runs == sum(map(len, timing.samples_ms))
            assert timing.warmup_runs >= 2
            assert sum(map(sum, timing.samples_ms)) * (1 + timing.overhead) >= 50 * (1 - 1e-9)
            assert timing.device_ms is None


def test_memory_and_machine_are_recorded(latency: Latency) -> None:
    assert [c.name for c in latency.contenders] == CONTENDERS
    for contender in latency.contenders:
        assert 0 < contender.idle_memory_mib < contender.peak_memory_mib
        assert contender.device_memory_mib is None
        assert (contender.provider, contender.threads, contender.dtype) == ("cpu", 1, "fp32")
    assert [c.backend.split()[0] for c in latency.contenders] == ["torch", *["onnxruntime"] * 3]
    assert latency.machine.cores >= 1
    assert all(case.gpus == latency.machine.gpus for case in latency.cases)
    assert isfinite(latency.seconds)
    assert Latency.model_validate_json(latency.model_dump_json()) == latency


class Counted(Progress):
    def __init__(self) -> None:
        self.total = self.done = 0

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        assert description == "latency"
        self.total = total

        def advance(done: int) -> None:
            self.done += done

        yield advance


def test_without_memory_for_all_at_once_the_cases_are_the_same(
    recipe: Recipe, contenders: tuple[Runnable, ...], latency: Latency, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nemo_edge.measure.bench.memory_available", lambda: 0)
    counted = Counted()
    wanted = QUICK.model_copy(update={"targets": ("unet",)})
    got = bench([only(contenders, "eager"), only(contenders, "masked")], recipe.sampling, wanted, counted)
    (case,), resident = got.cases, latency.cases[1]
    assert (case.target, case.height, case.width) == (resident.target, resident.height, resident.width)
    assert [t.contender for t in case.timings] == ["eager", "masked"]
    assert [len(t.samples_ms) for t in case.timings] == [2, 2]
    assert [(r.contender, r.reference) for r in case.ratios] == [("masked", "eager")]
    assert counted.done == counted.total == 2 * 3  # a warm-up and two rounds


def test_batches_sizes_and_steps_are_cases(recipe: Recipe, contenders: tuple[Runnable, ...]) -> None:
    wanted = LatencySettings(
        runs=1, seconds=0, warmup_s=0, targets=("pipeline",), batches=(1, 2), sizes=((16, 32), (32, 16)), steps=1, threads=1
    )
    found = bench([c for c in contenders if c.name == "baked"], recipe.sampling, wanted)
    assert [(c.batch, c.height, c.width, c.steps) for c in found.cases] == [(1, 16, 32, 1), (1, 32, 16, 1), (2, 16, 32, 1), (2, 32, 16, 1)]
    for case in found.cases:
        (timing,) = case.timings
        assert (timing.runs, case.ratios) == (1, ())
        assert timing.images_per_s == pytest.approx(case.batch * 1e3 / timing.mean_ms)


def test_a_size_that_an_engine_does_not_take_is_told_in_the_parent(recipe: Recipe, contenders: tuple[Runnable, ...]) -> None:
    wanted = QUICK.model_copy(update={"sizes": ((34, 32),), "targets": ("unet",)})
    with pytest.raises(InputError, match=r"height 34 is not a multiple of 4 pixels.*take 32 or 36"):
        bench([only(contenders, "baked")], recipe.sampling, wanted)


def test_a_provider_that_is_not_here_is_told_in_the_parent(recipe: Recipe, contenders: tuple[Runnable, ...], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no cuda engine of text_encoder"):
        bench([replace(only(contenders, "baked"), engine=EngineSettings(provider="cuda"))], recipe.sampling, QUICK)
    bundle = tmp_path / "bundle"
    bundle.symlink_to(only(contenders, "baked").place, target_is_directory=True)
    (tmp_path / "copy").mkdir()
    for path in bundle.iterdir():
        if path.name != "engines":
            (tmp_path / "copy" / path.name).symlink_to(path)
    (tmp_path / "copy" / "engines").mkdir()
    for path in (bundle / "engines").iterdir():
        text = path.read_text().replace('"cpu"', '"tensorrt"')
        (tmp_path / "copy" / "engines" / path.name.replace("cpu", "tensorrt")).write_text(text)
    with pytest.raises(MissingDependency, match="TensorrtExecutionProvider"):
        bench(
            [replace(only(contenders, "baked"), engine=EngineSettings(provider="tensorrt"), place=str(tmp_path / "copy"))],
            recipe.sampling,
            QUICK,
        )


def test_a_defect_in_a_process_names_its_contender(recipe: Recipe, contenders: tuple[Runnable, ...]) -> None:
    with pytest.raises(RuntimeError, match=r"^eager: KeyError: 'fp8'"):
        bench([replace(only(contenders, "eager"), dtype="fp8")], recipe.sampling, QUICK)


class Kill(Progress):
    """Kills the contender's process after its warm-up, as a system without memory does."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        def advance(done: int) -> None:
            for child in multiprocessing.active_children():
                os.kill(child.pid or 0, signal.SIGKILL)
                child.join()

        yield advance


def test_a_process_that_is_killed_is_told(recipe: Recipe, contenders: tuple[Runnable, ...]) -> None:
    with pytest.raises(InputError, match=r"the process of baked was killed \(exit code -9\): is there enough memory"):
        bench([only(contenders, "baked")], recipe.sampling, QUICK.model_copy(update={"targets": ("vae_decoder",)}), Kill())


def test_a_bundle_says_what_it_is_timed_with(tiny_bundle: Path) -> None:
    assert open_bundle(tiny_bundle).recipe["latency"] is None  # times are taken where the recipe asks for them
