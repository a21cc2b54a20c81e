"""From a recipe to a bundle: what is in it, and which stages run again when something has changed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from elsewhere import elsewhere
from PIL import Image
from rebuilding import rebuilt

from nemo_edge.backends.onnxruntime import open_runner
from nemo_edge.bundle.manifest import MANIFEST, Manifest, open_bundle, verify
from nemo_edge.localization.groups import groups_in
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.authorship import ReportSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.release.build import build, plan
from nemo_edge.release.review import judge_again
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file
from nemo_edge.system.outputs import lock

STAGES = ["calibrate", "localize", "policies", "export", "measure"]


@pytest.fixture
def recipe(tiny_recipe: Path, tiny_bundle: Path, tmp_path: Path) -> Recipe:
    """The tiny recipe, its output in the test's folder beside a copy of the stages' cache."""
    shutil.copytree(tiny_bundle.parent / ".out.build", tmp_path / ".out.build")
    return load_recipe(tiny_recipe).model_copy(update={"output": tmp_path / "out"})


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


def test_another_author_writes_the_report_again_and_measures_nothing(recipe: Recipe) -> None:
    changed = recipe.model_copy(update={"report": ReportSettings(author="Ada Lovelace")})
    assert not plan(changed).up_to_date
    result, record = rebuilt(changed)
    assert (record.tasks, record.skipped, result.manifest.recipe_file) == ([], STAGES, "")
    assert "Ada Lovelace" in (recipe.output / "report/index.html").read_text()
    named = changed.model_copy(update={"report": ReportSettings(author="Ada Lovelace", organisation="Engines")})
    assert build(named, file="tiny.toml").manifest.recipe_file == "tiny.toml"
    page = (recipe.output / "report/index.html").read_text()
    assert "Ada Lovelace, Engines" in page
    assert "<code>nemo-edge build tiny.toml</code>" in page


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


def test_a_second_build_at_the_same_time_is_refused(recipe: Recipe) -> None:
    with lock(recipe.output), pytest.raises(InputError, match="another command is writing to"):
        elsewhere(lambda: build(recipe.model_copy(update={"name": "other"})))


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
