"""Builds of random weights: a bundle that says so, its engines, and what is found out before they are made."""

from __future__ import annotations

import importlib.util
import shutil
from functools import partial
from pathlib import Path

import pytest
from rebuilding import Record, rebuilt
from release.test_random_weights import small
from traces import traces

from nemo_edge.bundle.engines import Contents, inspect
from nemo_edge.bundle.engines import verify as verify_engine
from nemo_edge.bundle.manifest import MANIFEST, open_bundle, verify
from nemo_edge.cli import datasheet
from nemo_edge.measure.comparison import Question, compare
from nemo_edge.measure.latency import Latency
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import Recipe, load_recipe, with_random_weights
from nemo_edge.recipe.settings import ExportSettings, GateSettings, LatencySettings
from nemo_edge.recipe.targets import ProfileSettings, TensorRtRtxSettings, TensorRtSettings
from nemo_edge.release import _footprint as footprint
from nemo_edge.release.build import build, plan
from nemo_edge.release.random_weights import weights_folder
from nemo_edge.release.review import judge_again, report_again, time_again
from nemo_edge.system.environment import gpus
from nemo_edge.system.errors import BundleError, InputError, MissingDependency

RTX = importlib.util.find_spec("tensorrt_rtx") is not None


@pytest.fixture(scope="module")
def random_recipe(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe for random weights of an architecture of one attention and a middle, compiled where TensorRT-RTX is installed."""
    folder = tmp_path_factory.mktemp("random")
    unet = {
        "block_out_channels": [8, 8],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "layers_per_block": 1,
    }
    name = small(folder / "mine", "sd15", **{"unet/config.json": unet})
    settings = {"output": folder / "out", "export": ExportSettings(dtype="fp16", variants=("baked",))}
    settings["tensorrt_rtx"] = TensorRtRtxSettings(targets=("sm86",)) if RTX else None
    return with_random_weights(load_recipe(tiny_recipe).model_copy(update=settings), name)


@pytest.fixture(scope="module")
def random_bundle(random_recipe: Recipe) -> Path:
    return Path(build(random_recipe).bundle)


def test_random_weights_make_a_bundle_that_says_so(random_bundle: Path, random_recipe: Recipe) -> None:
    assert verify(random_bundle).passed
    manifest = open_bundle(random_bundle)
    assert random_recipe.random_weights is not None
    assert manifest.random_weights == Path(random_recipe.random_weights.architecture).name == "mine"
    assert (manifest.passed, manifest.threshold, manifest.prompts) == (False, None, {})
    assert [(gate.name, gate.passed) for gate in manifest.gates] == [("random_weights", False)]
    assert "for measuring, not for shipping" in manifest.gates[0].detail
    assert len(NeuronSet.load(random_bundle / "neurons.json")) == 16
    top = {path.name for path in random_bundle.iterdir()}
    assert not top & {"report", "measurement.json", "localization.jsonl", "calibration.safetensors", "latency.json", "README.md"}
    assert top >= {"engines", "neurons.json", "silenced_rows.safetensors", "unet", "vae_decoder", "text_encoder", "tokenizer"}
    assert [p.name for p in random_bundle.parent.iterdir() if p.name.startswith(".out.")] == [".out.build"]


def test_no_file_tells_where_it_was_made_plans_among_them(random_bundle: Path, tiny_recipe: Path) -> None:
    assert len(list(random_bundle.rglob("*.engine"))) == (3 if RTX else 0)
    assert list(traces(random_bundle, random_bundle.parent, tiny_recipe.parent)) == []


def test_inspection_and_verification_say_that_nothing_was_measured(
    random_bundle: Path, random_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert random_recipe.random_weights is not None
    said = f"random weights ({random_recipe.random_weights.name}): nothing was measured"
    datasheet.show(inspect(random_bundle))
    shown = capsys.readouterr().out
    assert said in shown
    assert "τ" not in shown
    datasheet.show_verified(verify_engine(random_bundle))
    assert said in capsys.readouterr().out


def test_a_second_build_of_random_weights_does_nothing(random_bundle: Path, random_recipe: Recipe) -> None:
    result, record = rebuilt(random_recipe)
    assert (result.skipped, result.passed, record.tasks) == (True, True, [])
    assert plan(random_recipe).up_to_date


def test_other_random_weights_are_another_bundle(random_bundle: Path, random_recipe: Recipe, tmp_path: Path) -> None:
    own = NeuronSet.load(random_bundle / "neurons.json")
    own.others(3, seed=5).save(tmp_path / "neurons.json")
    drawn = random_recipe.random_weights
    assert drawn is not None
    chosen = with_random_weights(random_recipe, None, tmp_path / "neurons.json")
    assert (plan(chosen).up_to_date, plan(chosen).done) == (False, ())
    seeded = random_recipe.model_copy(update={"random_weights": drawn.model_copy(update={"seed": 1})})
    assert (plan(seeded).up_to_date, list(plan(seeded).stages)) == (False, ["random weights"])
    config = Path(drawn.architecture) / "scheduler/scheduler_config.json"
    before = config.read_text()
    try:
        config.write_text(before.replace("{", '{"note": "another architecture", ', 1))
        assert list(plan(random_recipe).stages) == ["random weights"]
    finally:
        config.write_text(before)
    assert plan(random_recipe).up_to_date
    profile = TensorRtRtxSettings(targets=("sm86",), profiles=(ProfileSettings(height=(64, 128, 128)),))
    assert plan(random_recipe.model_copy(update={"tensorrt_rtx": profile})).done == ("localize", "export")


def test_too_little_memory_leaves_the_former_bundle(random_bundle: Path, random_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "memory_available", lambda: 10**8)
    before = (random_bundle / MANIFEST).read_bytes()
    record = Record()
    changed = random_recipe.model_copy(update={"export": random_recipe.export.model_copy(update={"opset": 18})})
    with pytest.raises(InputError, match=r"takes about .* GB of memory, and 0\.1 GB are free: use a larger machine"):
        build(changed, record)
    assert record.tasks == []
    assert (random_bundle / MANIFEST).read_bytes() == before
    assert verify(random_bundle).passed


def test_what_random_weights_would_be_too_large_for_is_found_before_they_are_made(
    random_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = random_recipe.model_copy(update={"output": tmp_path / "out", "tensorrt_rtx": None})
    assert list(plan(fresh).stages) == ["random weights"]
    monkeypatch.setattr(footprint, "memory_available", lambda: 2 * 10**9)
    assert list(plan(fresh).stages) == ["random weights"]
    record = Record()
    for run in (plan, partial(build, progress=record)):
        with pytest.raises(InputError, match=r"exporting this model takes about 1\d\.\d GB of memory, and 2\.0 GB are free"):
            run(with_random_weights(fresh, "sdxl"))
    assert record.tasks == []
    assert not weights_folder(fresh).exists()
    assert not weights_folder(with_random_weights(fresh, "sdxl")).exists()


@pytest.mark.skipif(bool(gpus()), reason="there is an NVIDIA GPU")
def test_a_compiler_that_is_not_here_is_found_before_random_weights_are_made(random_recipe: Recipe, tmp_path: Path) -> None:
    fresh = random_recipe.model_copy(update={"output": tmp_path / "out", "tensorrt": TensorRtSettings()})
    for run in (plan, build):
        with pytest.raises(MissingDependency, match="TensorRT builds engines on the GPU they are for"):
            run(fresh)
    assert not weights_folder(fresh).exists()


@pytest.mark.skipif(bool(gpus()), reason="there is an NVIDIA GPU")
def test_a_device_that_is_not_here_is_found_before_random_weights_are_made(random_recipe: Recipe, tmp_path: Path) -> None:
    source = random_recipe.checkpoint.model_copy(update={"device": "cuda"})
    fresh = random_recipe.model_copy(update={"output": tmp_path / "out", "checkpoint": source})
    for run in (plan, build):
        with pytest.raises(MissingDependency, match="device 'cuda' was asked for"):
            run(fresh)
    assert not weights_folder(fresh).exists()


def test_an_unknown_architecture_is_refused_before_anything_is_written(random_recipe: Recipe, tmp_path: Path) -> None:
    recipe = with_random_weights(random_recipe.model_copy(update={"output": tmp_path / "x"}), "sd14")
    for run in (plan, build):
        with pytest.raises(InputError, match="sd14 is not known: give one of sd15, sd21, sdxl, bk-sdm-small, or a folder"):
            run(recipe)


def test_what_was_never_measured_is_not_judged(random_bundle: Path) -> None:
    said = r"out carries random weights \(.*mine\): nothing was measured on it; build it from a checkpoint$"
    for run in (
        lambda: judge_again(random_bundle, GateSettings(), write=True),
        lambda: report_again(random_bundle),
        lambda: compare(str(random_bundle), str(random_bundle), Question(("a pig",))),
    ):
        with pytest.raises(BundleError, match=said):
            run()


@pytest.mark.skipif(not RTX, reason="TensorRT-RTX is not installed: pip install 'nemo-edge[rtx]'")
def test_every_component_has_a_plan_with_a_sidecar(random_bundle: Path) -> None:
    found = inspect(random_bundle)
    assert isinstance(found, Contents)
    plans = {engine.sidecar.component: engine for engine in found.engines if engine.sidecar}
    assert plans.keys() == {"text_encoder", "unet", "vae_decoder"}
    for engine in plans.values():
        assert engine.sidecar is not None
        assert (engine.sidecar.targets, engine.sidecar.dtype) == (("sm86",), "fp16")
        assert engine.header is not None
        assert engine.header.targets == ("sm86",)
        assert verify_engine(Path(engine.path)).passed
    assert verify_engine(random_bundle).passed


@pytest.mark.skipif(not RTX, reason="TensorRT-RTX is not installed: pip install 'nemo-edge[rtx]'")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"components": ("unet", "unet_masked")},
            r"tensorrt_rtx.components: 'unet_masked' is not exported; there are text_encoder, unet",
        ),
        ({"profiles": (ProfileSettings(height=136),)}, r"profiles.height = \[136, 136, 136\]: 136 is not a multiple of 16 pixels"),
    ],
)
def test_plans_that_cannot_be_are_refused_and_the_bundle_stays(
    random_bundle: Path, random_recipe: Recipe, changes: dict[str, object], said: str
) -> None:
    before = (random_bundle / MANIFEST).read_bytes()
    settings = TensorRtRtxSettings.model_validate({"targets": ("sm86",), **changes})
    with pytest.raises(InputError, match=said):
        build(random_recipe.model_copy(update={"tensorrt_rtx": settings}))
    assert (random_bundle / MANIFEST).read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(not RTX, reason="TensorRT-RTX is not installed: pip install 'nemo-edge[rtx]'")
def test_bf16_is_compiled_without_a_gpu_and_timed_with_one(random_recipe: Recipe, tmp_path: Path) -> None:
    export = ExportSettings(dtype="bf16", variants=("baked",))
    recipe = random_recipe.model_copy(update={"output": tmp_path / "out", "export": export})
    found = inspect(Path(build(recipe).bundle))
    assert isinstance(found, Contents)
    assert {engine.sidecar.component: engine.sidecar.dtype for engine in found.engines if engine.sidecar} == dict.fromkeys(
        ("text_encoder", "unet", "vae_decoder"), "bf16"
    )
    with pytest.raises(InputError, match=r"cannot be timed so: export.dtype = 'bf16' cannot run with engine.provider = 'cpu'"):
        time_again(recipe.output, LatencySettings())


def test_random_weights_are_timed_without_a_report(random_bundle: Path, random_recipe: Recipe, tmp_path: Path) -> None:
    bundle = shutil.copytree(random_bundle, tmp_path / "bundle")
    settings = LatencySettings(targets=("unet",), runs=1, seconds=0, warmup_s=0, threads=1, beside=())
    with pytest.raises(InputError, match=r"does not exist.*; pass --checkpoint, or --no-eager"):  # it was moved without its weights
        time_again(bundle, settings)
    timed = time_again(bundle, settings, checkpoint=str(next((random_bundle.parent / ".out.build").glob("weights-*"))))
    assert (timed.gates, timed.passed) == ((), True)
    assert [t.contender for t in timed.latency.cases[0].timings] == ["eager", "baked"]
    assert Latency.model_validate_json((bundle / "latency.json").read_bytes()) == timed.latency
    assert verify(bundle).passed
    assert not (bundle / "report").exists()
    assert open_bundle(bundle).files.keys() - open_bundle(random_bundle).files.keys() == {"latency.json"}
    assert plan(random_recipe.model_copy(update={"output": bundle})).stages.keys() == {"random weights"}
