"""From a recipe to a bundle: what is in it, and which stages run again when something has changed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import huggingface_hub
import numpy as np
import pytest
from PIL import Image
from test_random_weights import small

from nemo_edge import datasheet, footprint
from nemo_edge.backends.onnxruntime import open_runner
from nemo_edge.build import BuildResult, build, lock, plan, weights_folder
from nemo_edge.bundle import MANIFEST, Manifest, open_bundle, verify
from nemo_edge.comparison import Question, compare
from nemo_edge.engines import Contents, inspect
from nemo_edge.engines import verify as verify_engine
from nemo_edge.environment import gpus
from nemo_edge.errors import BundleError, InputError, MissingDependency
from nemo_edge.files import sha256_file
from nemo_edge.groups import groups_in
from nemo_edge.latency import Latency
from nemo_edge.neurons import NeuronSet
from nemo_edge.progress import Advance, Progress
from nemo_edge.random_weights import MARKER, RandomWeights
from nemo_edge.recipe import ExportSettings, FidelitySettings, GateSettings, LatencySettings, Recipe, load_recipe, with_random_weights
from nemo_edge.review import judge_again, report_again, time_again
from nemo_edge.targets import ProfileSettings, TensorRtRtxSettings, TensorRtSettings

STAGES = ["calibrate", "localize", "policies", "export", "measure"]


class Record(Progress):
    """Keeps which tasks ran and which stages were left out."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.skipped: list[str] = []

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self.tasks.append(description)
        yield lambda done: None

    def note(self, message: str) -> None:
        self.skipped.append(message.removesuffix(": nothing has changed"))


@pytest.fixture
def recipe(tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path) -> Recipe:
    """The tiny recipe, its output in the test's folder beside a copy of the stages' cache."""
    shutil.copytree(tiny_bundle.parent / ".out.build", tmp_path / ".out.build")
    return load_recipe(tiny_recipe).model_copy(update={"output": tmp_path / "out"})


def rebuilt(recipe: Recipe) -> tuple[BuildResult, Record]:
    record = Record()
    return build(recipe, record), record


def lasting(manifest: Manifest) -> dict[str, str]:
    """The hashes of a bundle's files, but those that hold when it was made."""
    return {name: digest for name, digest in manifest.files.items() if name not in ("report/index.html", "report/report.json")}


def test_a_bundle_has_the_layout_of_optimum_and_the_evidence(tiny_bundle: Path) -> None:
    names = {p.relative_to(tiny_bundle).as_posix() for p in tiny_bundle.rglob("*") if p.is_file()}
    engines = {f"engines/{c}.onnxruntime.cpu.json" for c in ("text_encoder", "unet", "unet_masked", "vae_decoder")}
    graphs = {f"{c}/model.onnx" for c in ("text_encoder", "unet", "unet_masked", "vae_decoder")}
    configs = {f"{c}/config.json" for c in ("text_encoder", "unet", "vae_decoder")} | {"scheduler/scheduler_config.json"}
    reports = {f"report/{name}" for name in ("index.html", "report.json", "junit.xml")}
    found = {"neurons.json", "localization.jsonl", "memorization_statistics.csv", "calibration.safetensors", "measurement.json"}
    assert names >= engines | graphs | configs | reports | found | {"model_index.json", MANIFEST, "tokenizer/tokenizer.json"}
    assert not [name for name in names if "stage.json" in name or name.startswith(".")]
    assert [p.name for p in tiny_bundle.parent.iterdir() if p.name.startswith(".out.")] == [".out.build"]


def test_the_manifest_has_the_hash_of_everything(tiny_bundle: Path, tiny_recipe: Path) -> None:
    manifest = open_bundle(tiny_bundle)
    present = {p.relative_to(tiny_bundle).as_posix(): sha256_file(p) for p in tiny_bundle.rglob("*") if p.is_file() and p.name != MANIFEST}
    assert manifest.files == present
    assert manifest.prompts == {name: sha256_file(tiny_recipe.parent / name) for name in ("memorized.csv", "general.txt")}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert manifest.checkpoint[weights] == sha256_file(tiny_recipe.parent / "model" / weights)
    assert manifest.neurons_hash == NeuronSet.load(tiny_bundle / "neurons.json").content_hash()
    assert manifest.passed == all(gate.passed for gate in manifest.gates)
    assert verify(tiny_bundle).passed


def test_both_variants_are_one_model(tiny_bundle: Path) -> None:
    neurons = NeuronSet.load(tiny_bundle / "neurons.json")
    assert 0 < len(neurons) < neurons.total
    rng = np.random.default_rng(0)
    feed = {"sample": rng.standard_normal((2, 4, 16, 16), np.float32), "timestep": np.array([961, 1], np.float32)}
    feed["encoder_hidden_states"] = rng.standard_normal((2, 16, 16), np.float32)
    mask = np.stack([neurons.mask(), np.ones(neurons.total, np.float32)])
    with open_runner(tiny_bundle / "unet/model.onnx") as baked, open_runner(tiny_bundle / "unet_masked/model.onnx") as masked:
        expected, got = baked(feed)["out_sample"], masked({**feed, "value_mask": mask})["out_sample"]
    np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    assert np.abs(got[1] - expected[1]).max() > 1e-5  # a mask of ones leaves the memory in


def test_junit_has_a_case_for_every_gate(tiny_bundle: Path) -> None:
    gates = open_bundle(tiny_bundle).gates
    suite = ElementTree.parse(tiny_bundle / "report/junit.xml").getroot()
    assert [case.get("name") for case in suite.iter("testcase")] == [gate.name for gate in gates]
    failed = [gate.name for gate in gates if not gate.passed]
    assert [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None] == failed
    assert suite.get("failures") == str(len(failed))


def test_a_prompt_cannot_put_code_into_the_report(tiny_bundle: Path) -> None:
    page = (tiny_bundle / "report/index.html").read_text()
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; owl" in page


def test_an_identical_build_does_nothing(tiny_recipe: Path, tiny_bundle: Path) -> None:
    before = (tiny_bundle / MANIFEST).stat().st_mtime_ns
    result, record = rebuilt(load_recipe(tiny_recipe))
    assert result.skipped
    assert record.tasks == record.skipped == []
    assert (tiny_bundle / MANIFEST).stat().st_mtime_ns == before


def test_the_cache_alone_gives_the_same_bundle(recipe: Recipe, tiny_bundle: Path) -> None:
    result, record = rebuilt(recipe)
    assert not result.skipped
    assert (record.tasks, record.skipped) == ([], STAGES)
    assert lasting(result.manifest) == lasting(open_bundle(tiny_bundle))
    assert result.manifest.files.keys() == open_bundle(tiny_bundle).files.keys()


def test_another_sampling_measures_again_and_nothing_else(recipe: Recipe) -> None:
    changed = recipe.model_copy(update={"sampling": recipe.sampling.model_copy(update={"steps": 2})})
    assert plan(changed).done == ("calibrate", "localize", "policies", "export")
    _, record = rebuilt(changed)
    assert record.skipped == STAGES[:4]
    assert record.tasks[0] == "pictures: before"


def test_other_gates_judge_again_and_measure_nothing(recipe: Recipe, tiny_bundle: Path) -> None:
    changed = recipe.model_copy(update={"gates": GateSettings(general_drift=False)})
    assert not plan(changed).up_to_date
    result, record = rebuilt(changed)
    assert (record.tasks, record.skipped) == ([], STAGES)
    assert {g.name for g in open_bundle(tiny_bundle).gates} - {g.name for g in result.manifest.gates} == {
        "general_drift.baked",
        "general_drift.masked",
    }


def test_an_edited_cached_file_is_made_again(recipe: Recipe, tiny_bundle: Path) -> None:
    cached = next((recipe.output.parent / ".out.build").glob("calibrate-*")) / "calibration.safetensors"
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    result, record = rebuilt(recipe)
    assert (record.tasks, record.skipped) == (["calibrate"], STAGES[1:])
    assert cached.read_bytes() == whole
    assert lasting(result.manifest) == lasting(open_bundle(tiny_bundle))
    assert result.manifest.files.keys() == open_bundle(tiny_bundle).files.keys()


def test_an_edited_bundle_is_put_right_from_the_cache(recipe: Recipe) -> None:
    build(recipe)
    page = recipe.output / "report/index.html"
    page.write_text("nothing to see")
    assert not plan(recipe).up_to_date
    result, record = rebuilt(recipe)
    assert not result.skipped
    assert record.tasks == []
    assert "nothing to see" not in page.read_text()
    assert plan(recipe).up_to_date


def test_a_dry_run_writes_nothing(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe).model_copy(update={"output": tmp_path / "out"})
    planned = plan(recipe)
    assert list(planned.stages) == STAGES
    assert (planned.done, planned.up_to_date) == ((), False)
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_which_sizes_the_graph_cannot_take(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    odd = recipe.sampling.model_copy(update={"height": 34})
    with pytest.raises(InputError, match="height 34 is not a multiple of"):
        plan(recipe.model_copy(update={"sampling": odd}))
    with pytest.raises(InputError, match="width 38 is not a multiple of"):
        plan(recipe.model_copy(update={"latency": LatencySettings().model_copy(update={"sizes": ((32, 38),)})}))
    plan(recipe.model_copy(update={"sampling": odd, "export": recipe.export.model_copy(update={"height": 34})}))


def test_other_contents_of_a_statistics_file_are_another_calibration(tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    statistics = shutil.copy(tiny_bundle / "calibration.safetensors", tmp_path / "s.safetensors")
    recipe = load_recipe(tiny_recipe)
    recipe = recipe.model_copy(update={"calibration": recipe.calibration.model_copy(update={"statistics": statistics})})
    before = plan(recipe).stages
    statistics.write_bytes(b"others")
    after = plan(recipe).stages
    assert all(before[stage] != after[stage] for stage in STAGES)


def test_files_of_one_name_in_two_folders_are_two_files(tiny_recipe: Path, tmp_path: Path) -> None:
    for folder, colour in (("a", "pink"), ("b", "brown")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8), colour).save(tmp_path / folder / "picture.png")
    (tmp_path / "m.csv").write_text("Caption;image\npig;a/picture.png\nowl;b/picture.png\n")
    recipe = load_recipe(tiny_recipe)
    recipe = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"memorized": tmp_path / "m.csv"})})
    before = plan(recipe).key
    Image.new("RGB", (8, 8), "black").save(tmp_path / "a" / "picture.png")
    assert plan(recipe).key != before


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r, _: {"checkpoint": r.checkpoint.model_copy(update={"path": "/none"})}, "checkpoint /none does not exist"),
        (lambda r, f: {"checkpoint": r.checkpoint.model_copy(update={"path": str(f)})}, "holds no files of a model"),
        (lambda r, f: {"prompts": r.prompts.model_copy(update={"general": f / "none.txt"})}, r"none\.txt does not exist"),
        (lambda r, f: {"fidelity": FidelitySettings(sscd=f / "sscd.pt")}, r"sscd\.pt, which the recipe names, does not exist"),
        (lambda r, f: {"output": f / ".."}, "is not empty and not a bundle"),
    ],
)
def test_a_dry_run_finds_what_cannot_be_used(
    tiny_recipe: Path, tmp_path: Path, change: Callable[[Recipe, Path], dict[str, object]], reason: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "mine").write_text("")
    recipe = load_recipe(tiny_recipe)
    with pytest.raises(InputError, match=reason):
        plan(recipe.model_copy(update=change(recipe, folder)))


def test_two_general_prompts_are_too_few(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("a\nb\n")
    recipe = load_recipe(tiny_recipe)
    with pytest.raises(InputError, match="at least 3 are needed"):
        plan(recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"general": tmp_path / "g.txt"})}))


def test_a_size_that_the_graph_cannot_take_is_found_before_the_work(recipe: Recipe) -> None:
    changed = recipe.model_copy(
        update={
            "export": recipe.export.model_copy(update={"height": 24}),
            "sampling": recipe.sampling.model_copy(update={"height": 24, "width": 34}),
            "calibration": recipe.calibration.model_copy(update={"prompts": 3}),
        }
    )
    record = Record()
    with pytest.raises(InputError, match=r"width 34 is not a multiple of 4 pixels.*take 32 or 36"):
        build(changed, record)
    assert record.tasks == []


def test_a_second_build_at_the_same_time_is_refused(recipe: Recipe) -> None:
    with lock(recipe.output), pytest.raises(InputError, match="another build"):
        build(recipe.model_copy(update={"name": "other"}))


def test_a_picture_that_cannot_be_read_is_found_before_the_work(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(tiny_recipe.parent, folder, ignore=shutil.ignore_patterns("out", ".*"))
    (folder / "memorized.csv").write_text("Caption;image\na red pig;a.png\n")
    (folder / "a.png").write_text("no picture")
    for run in (plan, build):
        with pytest.raises(InputError, match=r"a\.png"):
            run(load_recipe(folder / "recipe.toml"))


def test_the_memory_for_a_checkpoint_of_the_hub_is_judged_where_it_lies(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--owner--model"
    shutil.copytree(tiny_recipe.parent / "model", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    recipe = load_recipe(tiny_recipe)
    checkpoint = recipe.checkpoint.model_copy(update={"path": "owner/model"})
    recipe = recipe.model_copy(update={"output": tmp_path / "out", "checkpoint": checkpoint})
    assert plan(recipe).done == ()
    monkeypatch.setattr(footprint, "memory_available", lambda: 10**8)
    with pytest.raises(InputError, match=r"exporting this model takes about .* GB of memory, and 0\.1 GB are free"):
        plan(recipe)


RTX = importlib.util.find_spec("tensorrt_rtx") is not None


@pytest.fixture(scope="module")
def random_recipe(tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe for random weights of an architecture of one attention a block, compiled where TensorRT-RTX is installed."""
    folder = tmp_path_factory.mktemp("random")
    unet = {
        "block_out_channels": [8, 8],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
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
    assert manifest.random_weights == random_recipe.random_weights.architecture
    assert (manifest.passed, manifest.threshold, manifest.prompts) == (False, None, {})
    assert [(gate.name, gate.passed) for gate in manifest.gates] == [("random_weights", False)]
    assert "for measuring, not for shipping" in manifest.gates[0].detail
    assert len(NeuronSet.load(random_bundle / "neurons.json")) == 16
    top = {path.name for path in random_bundle.iterdir()}
    assert not top & {"report", "measurement.json", "localization.jsonl", "calibration.safetensors", "latency.json", "README.md"}
    assert top >= {"engines", "neurons.json", "silenced_rows.safetensors", "unet", "vae_decoder", "text_encoder", "tokenizer"}
    assert [p.name for p in random_bundle.parent.iterdir() if p.name.startswith(".out.")] == [".out.build"]


def test_inspection_and_verification_say_that_nothing_was_measured(
    random_bundle: Path, random_recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    assert random_recipe.random_weights is not None
    said = f"random weights ({random_recipe.random_weights.architecture}): nothing was measured"
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


@pytest.mark.parametrize(("name", "remedy"), [("sd15", "sd15"), ("mine", ".*/model")])
def test_random_weights_are_no_checkpoint(tiny_recipe: Path, tmp_path: Path, name: str, remedy: str) -> None:
    model = shutil.copytree(tiny_recipe.parent / "model", tmp_path / "model")
    marker = RandomWeights(name=name, seed=0, dtype="fp16", architecture="0" * 64, versions={})
    (model / MARKER).write_text(marker.model_dump_json())
    recipe = load_recipe(tiny_recipe)
    checkpoint = recipe.checkpoint.model_copy(update={"path": str(model)})
    recipe = recipe.model_copy(update={"output": tmp_path / "out", "checkpoint": checkpoint})
    for run in (plan, build):
        with pytest.raises(InputError, match=rf"carries random weights \({name}\), .*: pass --random-weights {remedy}$"):
            run(recipe)
    assert not recipe.output.exists()


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
    timed = time_again(bundle, LatencySettings(targets=("unet",), runs=1, seconds=0, warmup_s=0, threads=1))
    assert (timed.gates, timed.passed) == ((), True)
    assert [t.contender for t in timed.latency.cases[0].timings] == ["eager", "baked"]
    assert Latency.model_validate_json((bundle / "latency.json").read_bytes()) == timed.latency
    assert verify(bundle).passed
    assert not (bundle / "report").exists()
    assert open_bundle(bundle).files.keys() - open_bundle(random_bundle).files.keys() == {"latency.json"}
    assert plan(random_recipe.model_copy(update={"output": bundle})).stages.keys() == {"random weights"}


def test_a_bundle_of_groups_silences_their_neurons_and_is_judged_by_its_variants(recipe: Recipe) -> None:
    localization = recipe.localization.model_copy(update={"group_by": "list", "paraphrases": 2, "mode": "fast"})
    found, record = rebuilt(recipe.model_copy(update={"localization": localization}))
    folder = recipe.output
    assert record.tasks[:2] == ["localize", "group"]  # what was calibrated is the same
    [group] = groups_in(folder)
    assert [member.prompt for member in group.members if not member.variant] == ["a red pig", "<script>alert(1)</script> owl"]
    assert group.neurons == NeuronSet.load(folder / "neurons.json")
    assert found.manifest.neurons_hash == group.neurons.content_hash()
    assert {gate.name for gate in found.manifest.gates} >= {"paraphrases", "memorization_score.baked"}
    report = json.loads((folder / "report" / "report.json").read_text())
    assert [each["neurons"] for each in report["groups"]] == [len(group.neurons)] == [report["measurement"]["neurons"]]
    page = (folder / "report" / "index.html").read_text()
    assert "Small changes of words" in page
    assert "but others were chosen" not in page
    judged = judge_again(folder, GateSettings(paraphrases=False), write=False).gates
    assert "paraphrases" not in {gate.name for gate in judged}
