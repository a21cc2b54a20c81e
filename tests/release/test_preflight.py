"""What a build would stumble over after hours is found before its first stage."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from backends.test_readiness import with_machine
from rebuilding import Record
from safetensors.torch import load_file

from nemo_edge.backends import openvino
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.marker import MARKER, RandomWeights
from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe, portable
from nemo_edge.recipe.settings import CheckpointSettings, FidelitySettings, LatencySettings, PromptSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.release import _footprint as footprint
from nemo_edge.release import _preflight
from nemo_edge.release._footprint import estimate
from nemo_edge.release._preflight import check_compiles, check_runs, preflight
from nemo_edge.release.build import build, plan
from nemo_edge.system.errors import InputError, MissingDependency
from nemo_edge.system.files import checkpoint_folder, with_commit
from nemo_edge.system.progress import Progress


def test_a_dry_run_says_which_sizes_the_graph_cannot_take(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    odd = recipe.sampling.model_copy(update={"height": 34})
    with pytest.raises(InputError, match="height 34 is not a multiple of"):
        plan(recipe.model_copy(update={"sampling": odd}))
    with pytest.raises(InputError, match="width 38 is not a multiple of"):
        plan(recipe.model_copy(update={"latency": LatencySettings().model_copy(update={"sizes": ((32, 38),)})}))
    plan(recipe.model_copy(update={"sampling": odd, "export": recipe.export.model_copy(update={"height": 34})}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r, _: {"checkpoint": r.checkpoint.model_copy(update={"path": "/none"})}, "checkpoint /none does not exist"),
        (lambda r, f: {"checkpoint": r.checkpoint.model_copy(update={"path": str(f)})}, "checkpoint folder .* is empty"),
        (lambda r, f: {"prompts": r.prompts.model_copy(update={"general": f / "none.txt"})}, r"none\.txt does not exist"),
        (lambda r, f: {"fidelity": FidelitySettings(general_prompts=2, sscd=f / "sscd.pt")}, r"sscd\.pt, which the recipe names, does not"),
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
    with pytest.raises(InputError, match=r"g\.txt holds 2 different general prompts, but the recipe asks for 6 .*: add 4 prompts$"):
        plan(recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"general": tmp_path / "g.txt"})}))


def test_a_size_that_the_graph_cannot_take_is_found_before_the_work(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    changed = recipe.model_copy(
        update={
            "output": tmp_path / "out",
            "export": recipe.export.model_copy(update={"height": 24}),
            "sampling": recipe.sampling.model_copy(update={"height": 24, "width": 34}),
            "calibration": recipe.calibration.model_copy(update={"prompts": 3}),
        }
    )
    record = Record()
    with pytest.raises(InputError, match=r"width 34 is not a multiple of 4 pixels.*take 32 or 36"):
        build(changed, record)
    assert record.tasks == []


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


def test_a_hub_id_is_built_from_one_commit_the_newest_or_the_one_that_is_pinned(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached, commits = tmp_path / "models--owner--model", {"main": "1" * 40, "v1.0": "0" * 40}
    (cached / "refs").mkdir(parents=True)
    for branch, commit in commits.items():
        shutil.copytree(tiny_recipe.parent / "model", cached / "snapshots" / commit)
        (cached / "refs" / branch).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    recipe = load_recipe(tiny_recipe)
    for revision, commit in ((None, "1" * 40), ("v1.0", "0" * 40), ("0" * 40, "0" * 40)):
        checkpoint = CheckpointSettings(path="owner/model", revision=revision)
        seen = preflight(recipe.model_copy(update={"output": tmp_path / "out", "checkpoint": checkpoint}), Progress())
        assert seen.recipe.checkpoint.path == f"owner/model@{commit}"
        assert portable(seen.recipe).checkpoint.path == f"owner/model@{commit}"
        assert checkpoint_folder(seen.recipe.checkpoint.path) == cached / "snapshots" / commit
    assert with_commit(str(cached)) == str(cached)  # what is on this machine has no commit that anybody could fetch
    with pytest.raises(InputError, match=r"checkpoint owner/model@v2\.0 does not exist here and cannot be fetched from the hub"):
        checkpoint_folder("owner/model@v2.0")
    with pytest.raises(InputError, match=r"checkpoint \./model@v2\.0 does not exist: give a diffusers folder"):
        checkpoint_folder("./model@v2.0")


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


def small(backend: str = "tensorrt", **tables: Any) -> Recipe:
    own = {"name": "x", "output": Path("o"), "checkpoint": CheckpointSettings(path="c")}
    prompts = PromptSettings(memorized=Path("m"), general=Path("g"))
    return Recipe.model_validate({**own, "prompts": prompts, "engine": {"backend": backend}, "tensorrt": {}, "tensorrt_rtx": {}, **tables})


def test_a_build_that_runs_tensorrt_s_engines_needs_a_gpu_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with_machine(monkeypatch)
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(MissingDependency, match="TensorRT-RTX runs on an NVIDIA GPU, and nvidia-smi sees none here"):
        check_runs(small("tensorrt-rtx"))
    check_runs(small("onnxruntime"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match="TensorRT is not installed"):
        check_runs(small("tensorrt"))


@pytest.mark.parametrize(
    ("targets", "capability", "runs"), [((), "8.9", True), ((), "9.0", False), (("sm86",), "8.6", True), (("sm86",), "8.9", False)]
)
def test_a_build_whose_targets_are_other_gpus_is_refused(
    monkeypatch: pytest.MonkeyPatch, targets: tuple[str, ...], capability: str, runs: bool
) -> None:
    pytest.importorskip("tensorrt_rtx")
    with_machine(monkeypatch, capability)
    settings = small("tensorrt-rtx", tensorrt_rtx={"targets": targets})
    if runs:
        check_runs(settings)
        return
    with pytest.raises(
        MissingDependency, match=f"do not run here, .* this machine has sm{capability.replace('.', '')}; change its targets"
    ):
        check_runs(settings)


def test_a_decoder_that_stays_in_fp32_is_not_for_turing_and_that_is_told_before_the_export(
    toy_sdxl: Checkpoint, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(_preflight, "check", lambda flavour, _: asked.append(flavour))
    xl = Path(toy_sdxl.source)

    def turing(**changes: Any) -> Recipe:
        rtx = {"targets": ("sm75", "sm86"), **changes}
        return small("onnxruntime", export={"dtype": "fp16"}, tensorrt=None, tensorrt_rtx=rtx)

    said = r"vae_decoder is fp32: leave vae_decoder out of tensorrt_rtx.components, or sm75 out of its targets; .*\(force_upcast\)"
    for components in (None, ("unet_masked", "vae_decoder")):
        with pytest.raises(InputError, match=said):
            check_compiles(turing(components=components), xl)
    assert asked == []
    check_compiles(turing(components=("unet_masked",)), xl)
    check_compiles(turing(targets=("sm86",)), xl)
    check_compiles(turing(), toy_folder)
    check_compiles(turing(), tmp_path / "single.safetensors")
    assert asked == ["tensorrt-rtx"] * 4


def test_weights_that_are_no_safetensors_are_not_judged_by_their_size(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(tiny_recipe.parent / "model", tmp_path / "model")
    for path in list(model.rglob("*.safetensors")):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()
    recipe = load_recipe(tiny_recipe)
    checkpoint = recipe.checkpoint.model_copy(update={"path": str(model), "allow_pickle": True})
    recipe = recipe.model_copy(update={"checkpoint": checkpoint, "output": tmp_path / "out"})
    monkeypatch.setattr(footprint, "memory_available", lambda: 0)
    assert preflight(recipe, Record()).footprint is None


def test_a_build_sees_what_its_dry_run_saw(tiny_recipe: Path, tiny_bundle: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    seen = preflight(recipe, Record())
    assert (seen.up_to_date, seen.footprint) == (True, None)
    assert (seen.key, seen.keys) == (plan(recipe).key, plan(tiny_recipe).stages)
    other = preflight(recipe.model_copy(update={"name": "other"}), Record())
    assert other.keys == seen.keys
    assert (other.key == seen.key, other.up_to_date) == (False, False)
    assert other.footprint == estimate(recipe.checkpoint.path, recipe.output).model_copy(
        update={"memory_available_bytes": other.footprint.memory_available_bytes, "disk_free_bytes": other.footprint.disk_free_bytes}
    )


def test_components_that_are_run_and_not_compiled_are_found_before_the_export(toy_sdxl: Checkpoint) -> None:
    """How many text encoders there are is known once the checkpoint is looked at."""
    components = ("text_encoder", "unet", "unet_masked", "vae_decoder")
    recipe = small("tensorrt-rtx", tensorrt=None, tensorrt_rtx={"components": components})
    with pytest.raises(InputError, match=r"needs engines of text_encoder_2 too: add them to tensorrt_rtx\.components"):
        _preflight._check_model(recipe, Path(toy_sdxl.source))


@pytest.mark.parametrize(
    ("file", "changes", "reason"),
    [
        ("unet/config.json", {"in_channels": 9}, r"takes 9 channels \(inpainting\)"),
        ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 2, "mid_block_type": None}, "no cross-attention in its down and mid"),
        ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "no schedule of betas"),
    ],
)
def test_a_dry_run_looks_at_the_kind_of_checkpoint(
    tiny_recipe: Path, tmp_path: Path, file: str, changes: dict[str, Any], reason: str
) -> None:
    recipe = load_recipe(tiny_recipe)
    folder = Path(shutil.copytree(recipe.checkpoint.path, tmp_path / "model"))
    (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))
    with pytest.raises(InputError, match=reason):
        plan(recipe.model_copy(update={"checkpoint": CheckpointSettings(path=str(folder))}))


def test_integers_on_a_cpu_without_their_instructions_are_told_or_refused(tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    recipe = load_recipe(tiny_recipe).model_copy(update={"quantization": QuantizationSettings(prompts=2)})
    other = recipe.model_copy(update={"engine": EngineSettings(backend="openvino")})
    beside = recipe.model_copy(update={"latency": LatencySettings(beside=("openvino fp32",))})
    weights = other.model_copy(update={"quantization": QuantizationSettings(prompts=2, scheme="int8_weights")})
    told = "this CPU has no instructions for 8-bit integers (VNNI on x86, dot products on Arm): int8 draws the same here, but hardly faster"

    def on(how: str) -> None:
        for module in (_preflight, openvino):
            monkeypatch.setattr(module, "int8_products", lambda: how)

    on("fast")
    assert told not in plan(recipe).notes
    for how in ("slow", "overflows"):
        on(how)
        assert plan(recipe).notes[-1] == told
        assert not plan(weights).notes
    for refused in (other, beside):
        with pytest.raises(MissingDependency, match=r"quantization\.scheme = 'int8': OpenVINO adds up products of 8-bit integers"):
            plan(refused)
