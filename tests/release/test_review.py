"""A finished bundle once more: judged, timed and reported again, whole at every moment."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nemo_edge.bundle.manifest import MANIFEST, open_bundle, open_verified, verify
from nemo_edge.measure.latency import Latency
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import GateSettings, LatencySettings
from nemo_edge.release import _judgement
from nemo_edge.release.build import build, plan
from nemo_edge.release.review import judge_again, report_again, summarize, time_again
from nemo_edge.system.environment import bf16_instructions
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_file

QUICK = LatencySettings(targets=("unet",), runs=5, seconds=0, warmup_s=0, threads=1, eager=False)
LENIENT = GateSettings(memorization_score=False, schedule_floor=False)
STRICT = GateSettings(memorization_score=False, schedule_floor=False, general_drift=1e-9)


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture(scope="module")
def timed(tiny_bundle: Path, tiny_recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny bundle with times of its own checkpoint and engines."""
    folder = shutil.copytree(tiny_bundle, tmp_path_factory.mktemp("timed") / "bundle")
    time_again(folder, QUICK.model_copy(update={"eager": True}), str(tiny_recipe.parent / "model"))
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def test_stricter_gates_fail_and_write_nothing(bundle: Path, tmp_path: Path) -> None:
    before = hashes(bundle)
    verdict = judge_again(bundle, STRICT, write=False)
    failed = [g.name for g in verdict.gates if not g.passed]
    assert failed == ["general_drift.baked", "general_drift.masked"]
    assert (verdict.passed, verdict.written) == (False, False)
    assert hashes(bundle) == before
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_the_bundle_s_own_gates_give_its_own_verdict(bundle: Path) -> None:
    manifest = open_bundle(bundle)
    own = GateSettings.model_validate(manifest.recipe["gates"])
    assert judge_again(bundle, own, write=False).gates == manifest.gates


def test_a_written_verdict_is_in_the_bundle_and_its_report(bundle: Path, tmp_path: Path) -> None:
    before = open_bundle(bundle)
    assert not before.passed
    verdict = judge_again(bundle, LENIENT, write=True)
    after = open_verified(bundle)
    assert (verdict.passed, verdict.written, after.passed) == (True, True, True)
    assert after.gates == verdict.gates
    assert Recipe.model_validate(after.recipe).gates == LENIENT
    changed = {name for name in before.files if before.files[name] != after.files[name]}
    assert changed >= {"report/index.html", "report/report.json", "report/junit.xml"}
    assert all(name.startswith("report/") for name in changed)
    assert after.files.keys() == before.files.keys()
    suite = ElementTree.parse(bundle / "report/junit.xml").getroot()
    assert suite.get("failures") == "0"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    judge_again(bundle, STRICT, write=True)
    assert not open_verified(bundle).passed


def test_a_verdict_has_its_files_beside_the_bundle(bundle: Path, tmp_path: Path) -> None:
    before = hashes(bundle)
    judge_again(bundle, STRICT, write=False, junit=tmp_path / "ci/junit.xml", summary=tmp_path / "ci/summary.md")
    failures = [
        case.get("name") for case in ElementTree.parse(tmp_path / "ci/junit.xml").iter("testcase") if case.find("failure") is not None
    ]
    assert failures == ["general_drift.baked", "general_drift.masked"]
    assert "general_drift" in (tmp_path / "ci/summary.md").read_text()
    assert hashes(bundle) == before


def test_a_place_that_cannot_be_written_is_found_before_anything_is(bundle: Path, tmp_path: Path) -> None:
    before = hashes(bundle)
    for place in ({"junit": tmp_path}, {"summary": tmp_path}):
        with pytest.raises(InputError, match="is a folder: give the path of a file"):
            judge_again(bundle, LENIENT, write=True, **place)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="is a folder"):
        report_again(bundle, tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        time_again(bundle, QUICK, out=tmp_path)
    assert hashes(bundle) == before


def test_times_are_in_the_bundle_and_its_gates(timed: Path, tiny_bundle: Path) -> None:
    manifest, before = open_verified(timed), open_bundle(tiny_bundle)
    assert manifest.files.keys() - before.files.keys() == {"latency.json"}
    latency = Latency.model_validate_json((timed / "latency.json").read_bytes())
    beside = ["eager bf16"] if bf16_instructions() else []
    assert [t.contender for t in latency.cases[0].timings] == ["eager", *beside, "unmitigated", "baked", "masked"]
    assert bool(latency.left_out) is not bool(beside)
    details = {g.name: g.detail for g in manifest.gates}
    assert "unet, batch 1, " in details["slow_down.baked"]
    assert {g.name: g.detail for g in before.gates}["slow_down.baked"] == "no times were taken: `nemo-edge bench`"
    assert (manifest.key, manifest.created >= before.created) == (before.key, True)
    assert "unmitigated" in (timed / "report/index.html").read_text()


def test_a_timed_bundle_is_still_up_to_date(timed: Path, tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe).model_copy(update={"output": timed})
    assert plan(recipe).up_to_date
    before = (timed / MANIFEST).stat().st_mtime_ns
    assert build(recipe).skipped
    assert (timed / MANIFEST).stat().st_mtime_ns == before


def test_a_gate_on_eager_s_time_needs_times(bundle: Path, timed: Path, tmp_path: Path) -> None:
    beside = GateSettings(memorization_score=False, schedule_floor=False, eager_ratio=1000.0)
    before = hashes(bundle)
    for write in (False, True):
        with pytest.raises(InputError, match=r"cannot be judged so: gates\.eager_ratio needs \[latency\].*`nemo-edge bench` takes"):
            judge_again(bundle, beside, write=write)
    assert hashes(bundle) == before
    folder = shutil.copytree(timed, tmp_path / "timed")
    judged = {g.name: g for g in judge_again(folder, beside, write=True).gates}
    assert judged["eager_ratio.baked"].passed
    report_again(folder)  # the recipe that was written is one
    assert {g.name for g in open_verified(folder).gates} >= {"eager_ratio.baked", "eager_ratio.masked"}


def test_times_may_go_elsewhere(bundle: Path, tmp_path: Path) -> None:
    before = hashes(bundle)
    wanted = QUICK.model_copy(update={"targets": ("text_encoder",)})
    found = time_again(bundle, wanted, out=tmp_path / "times/latency.json")
    assert Latency.model_validate_json((tmp_path / "times/latency.json").read_bytes()) == found.latency
    assert [t.contender for t in found.latency.cases[0].timings] == ["baked"]
    assert (found.gates, found.passed) == ((), True)
    assert hashes(bundle) == before


@pytest.mark.parametrize("changes", [{"targets": ("text_encoder",)}, {"runs": 4}])
def test_times_that_no_gate_can_judge_do_not_replace_others(bundle: Path, changes: dict[str, object]) -> None:
    before = hashes(bundle)
    with pytest.raises(InputError, match="5 rounds of its UNet or more: pass --out"):
        time_again(bundle, QUICK.model_copy(update=changes))
    assert hashes(bundle) == before


def test_a_verdict_by_other_gates_is_not_taken_for_the_recipe_s(bundle: Path, tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe).model_copy(update={"output": bundle})
    assert plan(recipe).up_to_date
    judge_again(bundle, LENIENT, write=True)
    assert not plan(recipe).up_to_date


def test_an_output_inside_the_bundle_would_change_it(bundle: Path) -> None:
    before = hashes(bundle)
    with pytest.raises(InputError, match="lies in the bundle"):
        judge_again(bundle, LENIENT, write=False, junit=bundle / "report" / "junit.xml")
    with pytest.raises(InputError, match="lies in the bundle"):
        time_again(bundle, QUICK, out=bundle / "times.json")
    assert hashes(bundle) == before


def test_a_summary_is_added_to_what_is_there(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "summary.md").write_text("before\n")
    summarize(bundle, tmp_path / "summary.md")
    assert (tmp_path / "summary.md").read_text().startswith("before\n#")


def test_times_stay_when_other_gates_are_applied(timed: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(timed, tmp_path / "bundle")
    before = sha256_file(folder / "latency.json")
    judge_again(folder, LENIENT, write=True)
    assert open_verified(folder).files["latency.json"] == before


def test_a_checkpoint_of_other_weights_is_refused(bundle: Path, toy_folder: Path, tmp_path: Path) -> None:
    wanted = QUICK.model_copy(update={"eager": True})
    before = hashes(bundle)
    with pytest.raises(InputError, match=r"is not the checkpoint that this bundle was made from.*pass --checkpoint"):
        time_again(bundle, wanted, str(toy_folder))
    with pytest.raises(InputError, match=r"does not exist.*pass --checkpoint, or --no-eager to time the engines alone"):
        time_again(bundle, wanted, str(tmp_path / "none"))
    assert hashes(bundle) == before


def test_a_report_written_twice_is_the_same(bundle: Path, tmp_path: Path) -> None:
    before = open_bundle(bundle)
    page = report_again(bundle, tmp_path / "summary.md")
    first = page.read_bytes(), open_verified(bundle)
    assert page == bundle / "report" / "index.html"
    assert report_again(bundle) == page
    assert (page.read_bytes(), open_verified(bundle)) == first
    assert first[1] == before  # the build wrote the same
    assert (tmp_path / "summary.md").read_text().startswith("#")


def test_a_changed_bundle_is_refused(bundle: Path) -> None:
    (bundle / "unet" / "model.onnx.data").write_bytes(b"")
    before = hashes(bundle)
    for again in (lambda: judge_again(bundle, LENIENT, write=True), lambda: time_again(bundle, QUICK), lambda: report_again(bundle)):
        with pytest.raises(BundleError, match=r"unet/model\.onnx\.data was changed"):
            again()
    assert hashes(bundle) == before


@pytest.mark.parametrize("stop", [KeyboardInterrupt, InputError])
def test_an_interruption_leaves_the_old_bundle_whole(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    before = hashes(bundle)

    def interrupted(folder: Path, *_: object) -> None:
        (folder / "index.html").unlink()
        (folder / "index.html").write_text("half")
        raise stop

    monkeypatch.setattr(_judgement, "write_report", interrupted)
    with pytest.raises(stop):
        judge_again(bundle, LENIENT, write=True)
    with pytest.raises(stop):
        report_again(bundle)
    assert hashes(bundle) == before
    assert verify(bundle).passed
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_nothing_is_measured_again(timed: Path, tiny_bundle: Path) -> None:
    assert Measurement.read(timed) == Measurement.read(tiny_bundle)
