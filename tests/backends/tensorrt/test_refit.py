"""An engine with new weights is believed only when it agrees and has changed as its graph has; else it is built anew."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import plans
import pytest
import torch

import nemo_edge.backends.tensorrt.refit as module
from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.backends.tensorrt.backend import available, compile_engine, find_plan, open_engine
from nemo_edge.backends.tensorrt.plans import PlanFile, open_plan_file
from nemo_edge.backends.tensorrt.profiles import plan_profiles, random_feed
from nemo_edge.backends.tensorrt.refit import changed_weights, refit, took_weights
from nemo_edge.bundle.manifest import amend, open_bundle, verify
from nemo_edge.graph.agreement import TOLERANCES
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.recipe.targets import ProfileSettings, TensorRtRtxSettings, TensorRtSettings
from nemo_edge.release.rebake import rebake
from nemo_edge.system.environment import gpus
from nemo_edge.system.progress import Progress

MODEL = "unet/model.onnx"


class Noted(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def layers(tiny_bundle: Path) -> tuple[ValueLayer, ...]:
    return NeuronSet.load(tiny_bundle / "neurons.json").layers


def other_set(bundle: Path, folder: Path, lists: list[list[int]]) -> Path:
    NeuronSet.from_lists(NeuronSet.load(bundle / "neurons.json").layers, lists).save(folder / "other.json")
    return folder / "other.json"


def with_recipe(bundle: Path, table: str, settings: object) -> None:
    """The bundle as a build with that table in its recipe leaves it, before its plans are there."""
    manifest = open_bundle(bundle)
    recipe = {**manifest.recipe, table: settings.model_dump(mode="json")}  # type: ignore[attr-defined]
    amend(bundle, manifest.model_copy(update={"recipe": recipe}), lambda _: None)


def noise(shape: tuple[int, ...], size: float, seed: int) -> np.ndarray:
    return size * np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_weights_that_were_taken_are_known_by_the_change_through_fp16_s_rounding() -> None:
    """A change of a third of what rounding is, in an output as large as that of a small picture."""
    old, change = noise((2, 4, 32, 32), 1.0, 0), noise((2, 4, 32, 32), 1e-3, 1)
    before, after = (old + noise(old.shape, 3e-3, seed) for seed in (2, 3))
    expected, tolerance = old + change, TOLERANCES["fp16"]
    assert took_weights(old, expected, before, after + change, tolerance)
    assert not took_weights(old, expected, before, before, tolerance), "nothing was taken, and the answer agrees all the same"
    assert not took_weights(old, expected, before, before + change / 2, tolerance), "one of two layers was taken"
    assert not took_weights(old, expected, before, before - change, tolerance)
    assert took_weights(old, old, before, before, tolerance)  # a change that does not show


def test_an_answer_that_is_wrong_or_no_number_is_not_believed() -> None:
    old, change = noise((1, 4, 8, 8), 1.0, 0), noise((1, 4, 8, 8), 0.5, 1)
    assert took_weights(old, old + change, old, old + change, 1e-4)
    assert not took_weights(old, old + change, old, old + change * 1.1, 1e-4)
    assert not took_weights(old, old + change, old, np.full_like(old, np.nan), 1e-4)
    assert not took_weights(old, old + change, old, (old + change)[:, :2], 1e-4)


def test_only_the_value_weights_that_changed_are_given(
    bundle: Path, tiny_bundle: Path, tmp_path: Path, layers: tuple[ValueLayer, ...]
) -> None:
    own = NeuronSet.load(bundle / "neurons.json")
    one = [list(own.indices[0]), [n for n in range(8) if n not in own.indices[1]]]  # the first layer stays as it is
    rebake(bundle, other_set(bundle, tmp_path, one))
    (name,) = changed_weights(tiny_bundle / MODEL, bundle / MODEL, layers)
    graph = open_graph(bundle / MODEL)
    assert (name,) == graph.weights([layers[1].name])[layers[1].name]
    found = changed_weights(tiny_bundle / MODEL, bundle / MODEL, layers)[name]
    assert np.array_equal(found, graph.read([name])[name])
    assert found.shape == graph.read([name])[name].shape
    assert changed_weights(tiny_bundle / MODEL, tiny_bundle / MODEL, layers) == {}


def test_a_folder_that_is_being_made_is_read_and_run(bundle: Path, layers: tuple[ValueLayer, ...]) -> None:
    """What is kept has a second name there, which onnx itself refuses to read."""
    answers: list[Mapping[str, np.ndarray]] = []

    def look(staged: Path) -> None:
        feed = random_feed(_profile(bundle))
        for folder in (bundle, staged):
            with OnnxRuntimeRunner(folder / MODEL) as runner:
                answers.append(runner(feed))
        assert changed_weights(bundle / MODEL, staged / MODEL, layers) == {}

    amend(bundle, open_bundle(bundle), look)
    assert np.array_equal(answers[0]["out_sample"], answers[1]["out_sample"])


def _profile(bundle: Path) -> dict[str, tuple[tuple[int, ...], ...]]:
    inputs, _ = open_graph(bundle / MODEL).ports()
    config = Configuration.load(bundle, tokenizers=False)
    (profile,) = plan_profiles("unet", {name: port.dims for name, port in inputs.items()}, (ProfileSettings(batch=(1, 1, 2)),), config)
    return profile  # type: ignore[return-value]


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "tensorrt-rtx", "flags": ("REFIT",)},
        {"refittable": (), "flags": ()},
        {"refittable": ("w",), "dtype": "bf16"},
        {"refittable": ("w",), "flags": ("VERSION_COMPATIBLE",)},
        pytest.param({"refittable": ("w",)}, marks=pytest.mark.skipif(bool(gpus()), reason="there is an NVIDIA GPU")),
    ],
)
def test_an_engine_that_takes_no_weights_here_is_left_to_be_built(
    tmp_path: Path, tiny_bundle: Path, layers: tuple[ValueLayer, ...], changes: dict[str, object]
) -> None:
    described = plans.standard_sidecar(plan="unet.plan", **changes)
    path = plans.write(tmp_path, plans.standard(), described)
    progress = Noted()
    assert not refit(tmp_path, tiny_bundle, described, layers, progress)
    assert (path.read_bytes(), progress.notes) == (plans.standard(), [])


def test_a_gpu_without_room_leaves_an_engine_to_be_built(
    bundle: Path, tiny_bundle: Path, tmp_path: Path, layers: tuple[ValueLayer, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's error is real; a GPU that is full is not to be had here."""

    def fill(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")

    rebake(bundle, other_set(bundle, tmp_path, [[1, 6], [0, 2, 3]]))
    profile = _profile(bundle)
    described = plans.standard_sidecar(plan="unet.plan", model=MODEL, dtype="fp32", profiles=(profile,))
    monkeypatch.setattr(module, "_takes_weights", lambda *_: True)
    monkeypatch.setattr(module, "refit_engine", fill)
    progress = Noted()
    assert not refit(bundle, tiny_bundle, described, layers, progress)
    assert progress.notes == ["unet.plan cannot be refitted, and is built anew: CUDA out of memory. Tried to allocate 2.00 GiB."]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")
def test_an_engine_for_other_gpus_than_are_compiled_for_now_does_not_stay(bundle: Path, tmp_path: Path) -> None:
    def change(staged: Path) -> None:
        for target in ("sm89", "sm86"):
            compile_engine(staged, "unet", MODEL, "tensorrt-rtx", TensorRtRtxSettings(targets=(target,)), (_profile(bundle),), "fp32")

    with_recipe(bundle, "tensorrt_rtx", TensorRtRtxSettings(targets=("sm86",), components=("unet",)))
    amend(bundle, open_bundle(bundle), change)
    former = open_plan_file(bundle / "engines/unet.tensorrt-rtx.sm86.json")
    found = rebake(bundle, other_set(bundle, tmp_path, [[1, 6], [0, 2, 3]]))
    assert found.removed == ("engines/unet.tensorrt-rtx.sm89.engine",)
    left = {p.name for p in (bundle / "engines").iterdir() if "rtx" in p.name}
    assert left == {"unet.tensorrt-rtx.sm86.engine", "unet.tensorrt-rtx.sm86.json"}
    again = open_plan_file(bundle / "engines/unet.tensorrt-rtx.sm86.json")
    assert former.graph_hash != again.graph_hash == open_graph(bundle / MODEL).content_hash()
    assert verify(bundle).passed


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("kind", ["value_weights", "all"])
def test_an_engine_is_refitted_there_and_back_again(bundle: Path, tiny_bundle: Path, tmp_path: Path, kind: str) -> None:
    """A, B, A through rebake: each time it answers as its graph does, and in the end as in the beginning."""
    if "tensorrt" not in available():
        pytest.skip("tensorrt is not installed")
    settings = TensorRtSettings.model_validate({"refit": kind, "components": ("unet",)})
    with_recipe(bundle, "tensorrt", settings)
    made: list[PlanFile] = []

    def change(staged: Path) -> None:
        made.append(compile_engine(staged, "unet", MODEL, "tensorrt", settings, (_profile(bundle),), "fp32"))

    amend(bundle, open_bundle(bundle), change)
    feed, factor = random_feed(_profile(bundle), seed=1), Configuration.load(bundle, tokenizers=False).factor

    def answer() -> np.ndarray:
        with open_engine(bundle, "unet", "tensorrt", factor=factor) as engine, OnnxRuntimeRunner(bundle / MODEL) as reference:
            got, expected = engine(feed)["out_sample"], reference(feed)["out_sample"]
        assert np.abs(got - expected).max() <= TOLERANCES["fp32"] * max(float(np.abs(expected).max()), 1.0)
        return got

    first = answer()
    for neurons in (other_set(bundle, tmp_path, [[1, 6], [0, 2, 3]]), tiny_bundle / "neurons.json"):
        progress = Noted()
        assert rebake(bundle, neurons, progress=progress).removed == ()
        assert not [note for note in progress.notes if "built anew" in note]
        plan = find_plan(bundle, "unet", "tensorrt")
        assert plan.graph_hash == open_graph(bundle / MODEL).content_hash()
        assert plan.size_bytes == (bundle / plan.plan).stat().st_size
        assert plan.refittable == made[0].refittable
        assert verify(bundle).passed
        last = answer()
    assert np.abs(last - first).max() <= TOLERANCES["fp32"] * max(float(np.abs(first).max()), 1.0)
