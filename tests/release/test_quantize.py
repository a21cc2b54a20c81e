"""A finished bundle quantized into another: what is in it, what is not any more, and what is refused before the work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from elsewhere import elsewhere
from plans import sidecar

from nemo_edge.bundle.manifest import MEASURED, amend, open_bundle, verify
from nemo_edge.export.quantization.half import is_quantized
from nemo_edge.export.quantization.quantize import RANGES
from nemo_edge.export.quantization.ranges import Ranges
from nemo_edge.export.quantization.record import RECORD
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import VALUE_DATA
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.release import quantize as module
from nemo_edge.release._cache import cache_of
from nemo_edge.release.clean import clean
from nemo_edge.release.quantize import QuantizedBundle, quantize_bundle
from nemo_edge.release.rebake import rebake
from nemo_edge.system.errors import BundleError, InputError, MissingDependency
from nemo_edge.system.files import sha256_file
from nemo_edge.system.outputs import lock
from nemo_edge.system.progress import Progress


@pytest.fixture(scope="module")
def made(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedBundle:
    """The tiny bundle in int8, its ranges found with two of its own prompts."""
    return quantize_bundle(tiny_bundle, tmp_path_factory.mktemp("made") / "int8", {"prompts": 2})


def test_its_unets_are_integers_and_all_else_is_as_it_was(made: QuantizedBundle, tiny_bundle: Path) -> None:
    before, after = open_bundle(tiny_bundle), open_bundle(made.bundle)
    assert verify(Path(made.bundle)).passed
    for place in ("unet", "unet_masked"):
        assert is_quantized(open_graph(Path(made.bundle) / place / "model.onnx"))
        assert 0 < made.errors[place] < 0.1
        assert 0 < made.integers[place] < 1
    gone = before.files.keys() - after.files.keys()
    gone -= {f"unet/{VALUE_DATA}"}  # so few weights are in the graph itself
    assert {name.partition("/")[0] for name in gone} == {"report", "measurement.json"}
    assert after.files.keys() - before.files.keys() == {RANGES, RECORD}
    changed = {name for name in before.files.keys() & after.files.keys() if before.files[name] != after.files[name]}
    assert changed == {n for n in after.files if n.startswith("unet") and n.endswith((".onnx", ".data")) and n in before.files}
    for place, sizes in made.sizes_bytes.items():
        for size, bundle in zip(sizes, (tiny_bundle, Path(made.bundle)), strict=True):
            assert size == sum(path.stat().st_size for path in (bundle / place).iterdir() if path.name != "config.json")
    assert (made.ranges, made.scheme, made.skipped) == ("found", "int8", False)


def test_it_is_unmeasured_and_says_how_it_was_made(made: QuantizedBundle, tiny_bundle: Path) -> None:
    manifest = open_bundle(made.bundle)
    (gate,) = manifest.gates
    assert (gate.name, gate.passed, manifest.passed, manifest.measured) == (MEASURED, False, False, False)
    assert gate.detail.startswith("its UNet was quantized since the bundle was measured")
    assert manifest.name == f"{open_bundle(tiny_bundle).name}-int8"
    assert manifest.recipe["quantization"]["prompts"] == 2
    assert manifest.key != open_bundle(tiny_bundle).key
    assert Ranges.read(Path(made.bundle) / RANGES).prompts == ("a dog", "a cat")


def test_it_is_measured_where_it_says(made: QuantizedBundle, tmp_path: Path, tiny_bundle: Path) -> None:
    bundle = shutil.copytree(made.bundle, tmp_path / "copy")
    recipe = load_recipe(tiny_bundle.parent / "recipe.toml")
    found = rebake(bundle, bundle / "neurons.json", measure=True, places=recipe)
    assert not found.changed
    manifest = open_bundle(bundle)
    assert manifest.measured
    assert {gate.name.partition(".")[0] for gate in manifest.gates} >= {"engine_error", "replication"}
    assert (bundle / "report" / "index.html").is_file()


def test_the_same_once_more_is_there_already_and_other_settings_take_the_same_ranges(
    made: QuantizedBundle, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("ranges are found anew")

    monkeypatch.setattr(module.quantization, "find_ranges", refuse)
    output = Path(made.bundle)
    assert quantize_bundle(tiny_bundle, output, {"prompts": 2}).skipped
    with pytest.raises(InputError, match=r"int8 is not empty: give another folder, or empty it"):
        quantize_bundle(tiny_bundle, output, {"prompts": 2, "keep": ["mid_block."]})
    aside = output.rename(output.with_name("aside"))
    try:
        found = quantize_bundle(tiny_bundle, output, {"prompts": 2, "keep": ["mid_block."]})
        assert found.kept["mid_block.resnets.0.conv1"] == "the recipe keeps it"
    finally:
        shutil.rmtree(output)
        aside.rename(output)


def test_ranges_of_a_file_give_the_same_files_and_those_of_another_model_are_refused(
    made: QuantizedBundle, tiny_bundle: Path, tmp_path: Path
) -> None:
    path = Path(made.bundle) / RANGES
    found = quantize_bundle(tiny_bundle, tmp_path / "again", {"ranges": path})
    assert found.ranges == "read"
    assert not cache_of(tmp_path / "again").exists()
    for name in ("unet/model.onnx", "unet/model.onnx.data", RANGES):
        assert sha256_file(tmp_path / "again" / name) == sha256_file(Path(made.bundle) / name)
    assert open_bundle(tmp_path / "again").recipe["quantization"]["ranges"] is None
    other = Ranges.read(path).model_copy(update={"source": "other"})
    other.write(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"other\.json: these are the ranges of another checkpoint: leave the file out"):
        quantize_bundle(tiny_bundle, tmp_path / "new", {"ranges": tmp_path / "other.json"})
    assert not (tmp_path / "new").exists()


def test_what_it_was_made_from_is_what_the_bundle_was_made_from_and_the_rest_is_of_here(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, manifest = shutil.copytree(tiny_bundle, tmp_path / "bundle"), open_bundle(tiny_bundle)
    elsewhere_built = manifest.machine.model_copy(update={"cpu": "another"})
    versions = {**manifest.versions, "onnx": "0.1"}
    former = manifest.model_copy(update={"recipe_file": "recipe.toml", "machine": elsewhere_built, "versions": versions})
    amend(bundle, former, lambda _: {})
    recipe = load_recipe(tiny_bundle.parent / "recipe.toml")
    other = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"path": "some/other-model"})})
    quantize_bundle(bundle, tmp_path / "w8", {"scheme": "int8_weights"}, places=other)
    made = open_bundle(tmp_path / "w8")
    assert Path(made.recipe["checkpoint"]["path"]).name == Path(manifest.recipe["checkpoint"]["path"]).name != "other-model"
    assert (made.recipe_file, made.machine.cpu) == ("", manifest.machine.cpu)
    assert made.versions["onnx"] == manifest.versions["onnx"]


def test_a_bundle_that_is_changed_meanwhile_is_not_quantized(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, own = shutil.copytree(tiny_bundle, tmp_path / "bundle"), NeuronSet.load(tiny_bundle / "neurons.json")
    own.others(3, seed=0).save(tmp_path / "others.json")
    real = module.quantization.quantize_files

    def late(*given: Any) -> object:
        rebake(bundle, tmp_path / "others.json")
        return real(*given)

    monkeypatch.setattr(module.quantization, "quantize_files", late)
    with pytest.raises(BundleError, match=r"bundle is being changed by another command \(unet/.*\): wait for it; nothing was written"):
        quantize_bundle(bundle, tmp_path / "out", {"scheme": "int8_weights"})
    assert not (tmp_path / "out").exists()


def test_a_unet_that_is_not_baked_with_its_neurons_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle, own = shutil.copytree(tiny_bundle, tmp_path / "bundle"), NeuronSet.load(tiny_bundle / "neurons.json")

    def write(staged: Path) -> dict[str, str]:
        (own | own.others(3, seed=0)).save(staged / "neurons.json")
        return {}

    amend(bundle, open_bundle(bundle), write)
    with pytest.raises(BundleError, match=r"unet/model\.onnx is not baked with the neurons of neurons\.json: build the bundle again"):
        quantize_bundle(bundle, tmp_path / "out", {"scheme": "int8_weights"})
    assert not (tmp_path / "out").exists()


def test_what_is_only_timed_beside_it_need_not_run_here(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, manifest = shutil.copytree(tiny_bundle, tmp_path / "bundle"), open_bundle(tiny_bundle)
    latency = {**(manifest.recipe.get("latency") or {}), "beside": ["openvino fp32"]}
    amend(bundle, manifest.model_copy(update={"recipe": {**manifest.recipe, "latency": latency}}), lambda _: {})
    monkeypatch.setattr("nemo_edge.backends.openvino.int8_products", lambda: "overflows")

    def stop(*_: object) -> None:
        raise InputError("enough")

    monkeypatch.setattr(module.quantization, "find_ranges", stop)
    (general := tmp_path / "general.txt").write_text("a lamp\n")
    with pytest.raises(InputError, match="enough"):
        quantize_bundle(bundle, tmp_path / "out", {"prompts": 1}, general=general)


def test_weights_alone_need_no_prompts(tiny_bundle: Path, tmp_path: Path) -> None:
    lonely = shutil.copytree(tiny_bundle, tmp_path / "elsewhere" / "far" / "bundle")
    found = quantize_bundle(lonely, tmp_path / "w8", {"scheme": "int8_weights"})
    assert (found.ranges, found.integers) == ("none", {})
    assert RANGES not in open_bundle(found.bundle).files
    with pytest.raises(InputError, match=r"general\.txt, which the bundle was made from, does not exist: pass --general, a list"):
        quantize_bundle(lonely, tmp_path / "i8", {"prompts": 2})


def test_other_prompts_may_find_the_ranges_but_no_memorized_one(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []

    def stop(files: Any, *_: object) -> None:
        asked.append(files.prompts)
        raise InputError("enough")

    monkeypatch.setattr(module.quantization, "find_ranges", stop)
    general = tmp_path / "general.txt"
    for text, count, said in (
        ("a lamp\na boat\nA  Lamp\na hat\n", 2, "enough"),
        ("a lamp\nA red pig!\n", 2, "stand among the memorized ones"),
        ("a lamp\n", 2, r"holds 1 different general prompts, and ranges are found with 2: .*--pictures 1\)"),
    ):
        general.write_text(text)
        with pytest.raises(InputError, match=said):
            quantize_bundle(tiny_bundle, tmp_path / "out", {"prompts": count}, general=general)
    assert asked == [("a lamp", "a boat")]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "general", "said"),
    [
        ({"prompts": 2, "ranges": Path("r.json")}, None, r"--pictures is for finding ranges, and those of r\.json are read: leave out one"),
        ({"ranges": Path("r.json")}, Path("g.txt"), r"--general is for finding ranges, and those of r\.json are read: leave out one"),
        (
            {"scheme": "int8_weights", "prompts": 2},
            None,
            "--pictures is about ranges of activations, and int8_weights rounds weights",
        ),
        ({"scheme": "int4_weights"}, Path("g.txt"), "--general is about ranges of activations, and int4_weights rounds weights alone"),
        ({"scheme": "int8_weights", "ranges": Path("r.json")}, None, "--ranges is about ranges of activations"),
    ],
)
def test_options_on_ranges_that_nothing_would_come_of_are_refused(given: dict[str, Any], general: Path | None, said: str) -> None:
    settings = QuantizationSettings.model_validate(given)
    named = {"--ranges": given.get("ranges"), "--general": general, "--pictures": given.get("prompts")}
    with pytest.raises(InputError, match=said):
        module._check_used(settings, named)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scheme": "fp8"}, "cannot be quantized so: quantization.scheme = 'fp8' is run by TensorRT alone"),
        ({"scheme": "int2"}, "--scheme int2: input should be 'int8', 'int8_weights'"),
        ({"prompts": 5}, r"quantization\.prompts = 5 are the first of the general prompts that calibrate, of which there are 4"),
        ({"prompts": 0}, "--pictures 0: input should be greater"),
        ({"prompts": 2, "keep": ["nowhere"]}, "no module that can be quantized has 'nowhere' in its path"),
        ({"ranges": Path("none.json")}, r"none\.json does not exist: give the ranges\.json of a bundle"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(tiny_bundle: Path, tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        quantize_bundle(tiny_bundle, tmp_path / "out", given)
    assert not list(tmp_path.iterdir())


def test_bundles_that_cannot_be_are_refused(made: QuantizedBundle, tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is quantized already: take the bundle that it was made of"):
        quantize_bundle(Path(made.bundle), tmp_path / "out")
    with pytest.raises(InputError, match="is the bundle itself, whose exact files are needed"):
        quantize_bundle(tiny_bundle, tiny_bundle / ".")
    with pytest.raises(BundleError, match=r"has no manifest\.json and is not a finished bundle"):
        quantize_bundle(tmp_path, tmp_path / "out")
    changed = shutil.copytree(tiny_bundle, tmp_path / "changed")
    (changed / "unet" / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"was changed since it was built \(unet/config\.json was changed\)"):
        quantize_bundle(changed, tmp_path / "out")
    half = shutil.copytree(tiny_bundle, tmp_path / "half")
    manifest = open_bundle(half)
    recipe = {**manifest.recipe, "export": {**manifest.recipe["export"], "dtype": "fp16"}}
    amend(half, manifest.model_copy(update={"recipe": recipe}), lambda _: {})
    with pytest.raises(InputError, match=r"half cannot be quantized so: export\.dtype = 'fp16'"):
        quantize_bundle(half, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_engines_of_the_exact_files_are_not_in_it(
    tiny_bundle: Path, tmp_path: Path, made: QuantizedBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest, recipe = open_bundle(bundle), {**open_bundle(tiny_bundle).recipe, "tensorrt_rtx": {"targets": ["sm86"]}}
    names = {place: f"engines/{place}.tensorrt-rtx.sm86" for place in ("unet", "text_encoder")}

    def write(folder: Path) -> dict[str, str]:
        for place, name in names.items():
            file = sidecar(component=place, model=f"{place}/model.onnx", plan=f"{name}.engine")
            (folder / f"{name}.json").write_text(file.model_dump_json())
            (folder / f"{name}.engine").write_bytes(b"plan")
        return {}

    amend(bundle, manifest.model_copy(update={"recipe": recipe}), write)

    def missing(*_: object) -> None:
        raise MissingDependency("no compiler here")

    monkeypatch.setattr(module, "check", missing)
    notes: list[str] = []

    class Notes(Progress):
        def note(self, message: str) -> None:
            notes.append(message)

    found = quantize_bundle(bundle, tmp_path / "out", {"ranges": Path(made.bundle) / RANGES}, progress=Notes())
    assert found.removed == (f"{names['unet']}.engine",)
    files = open_bundle(found.bundle).files
    assert f"{names['text_encoder']}.engine" in files
    assert not any(name.startswith(names["unet"] + ".") for name in files)
    assert "tensorrt-rtx engines of unet are left out: no compiler here" in notes


def test_an_interrupted_run_goes_on_and_what_it_left_can_be_cleaned(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module.quantization, "quantize_files", stop)
        with pytest.raises(KeyboardInterrupt):
            quantize_bundle(tiny_bundle, tmp_path / "out", {"prompts": 1})
    assert [path.name for path in tmp_path.iterdir()] == [".out.build"]
    found = clean(tmp_path).found
    assert any(each.path.endswith(".out.build") and each.kind == "stages" for each in found)
    (kept,) = (tmp_path / ".out.build").iterdir()
    whole = (kept / RANGES).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(module.quantization, "find_ranges", stop)
        patched.setattr(module, "COUNTED_BY", "another way")
        with pytest.raises(KeyboardInterrupt):
            quantize_bundle(tiny_bundle, tmp_path / "out", {"prompts": 1})
        patched.undo()
        patched.setattr(module.quantization, "find_ranges", stop)
        (kept / RANGES).write_bytes(whole[:99])
        with pytest.raises(KeyboardInterrupt):
            quantize_bundle(tiny_bundle, tmp_path / "out", {"prompts": 1})
        (kept / RANGES).write_bytes(whole)
        os.utime(kept, (0, 0))
        assert quantize_bundle(tiny_bundle, tmp_path / "out", {"prompts": 1}).ranges == "found"
        assert kept.stat().st_mtime > 1e9, "it is not the first that is pruned"


def test_an_output_that_another_command_writes_to_is_refused(made: QuantizedBundle, tiny_bundle: Path, tmp_path: Path) -> None:
    with lock(tmp_path / "out"), pytest.raises(InputError, match=r"another command is writing to .*out: wait for it"):
        elsewhere(lambda: quantize_bundle(tiny_bundle, tmp_path / "out", {"ranges": Path(made.bundle) / RANGES}))
    assert not (tmp_path / "out").exists()
