"""A bundle comes to its verdict one way, whoever asks."""

from __future__ import annotations

from pathlib import Path

from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.release._judgement import judged, write_evidence
from nemo_edge.report.evidence import Evidence


def test_what_lies_in_a_bundle_gives_the_verdict_that_its_build_gave(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle)
    blank = manifest.model_copy(update={"gates": (), "passed": True})
    found = Evidence.gather(tiny_bundle, blank, Measurement.read(tiny_bundle))
    again, evidence = judged(blank, Recipe.model_validate(manifest.recipe), found)
    assert (again.gates, again.passed) == (manifest.gates, manifest.passed) == (evidence.gates, evidence.passed)
    assert (again.created, again.files) == (evidence.date, manifest.files)
    assert evidence.under(manifest) == Evidence.read(tiny_bundle)


def test_other_gates_give_another_verdict(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle)
    recipe = Recipe.model_validate(manifest.recipe).model_copy(update={"gates": GateSettings(general_drift=1e-9, diversity_loss=False)})
    again, evidence = judged(manifest, recipe, Evidence.read(tiny_bundle))
    names = {gate.name.partition(".")[0]: gate for gate in again.gates}
    assert (names["general_drift"].limit, names["general_drift"].passed) == (1e-9, False)
    assert "diversity_loss" not in names
    assert (again.passed, evidence.passed) == (False, False)


def test_the_report_keeps_its_pictures_where_none_are_new(tiny_bundle: Path, tmp_path: Path) -> None:
    evidence = Evidence.read(tiny_bundle)
    pictures = tmp_path / "report" / "pictures"
    pictures.mkdir(parents=True)
    (pictures / "kept.txt").write_text("kept")
    write_evidence(tmp_path, evidence)
    assert (pictures / "kept.txt").is_file()
    assert (tmp_path / "report" / "index.html").is_file()
