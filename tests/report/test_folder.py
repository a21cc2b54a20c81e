"""The report's files are all there, whatever was measured, and the same for the same evidence."""

from __future__ import annotations

from math import nan
from pathlib import Path

import pytest

from nemo_edge.report.evidence import Evidence
from nemo_edge.report.folder import write_report
from nemo_edge.report.thumbnails import store_pictures
from report.test_evidence import agreement, evidence, measurement, mitigation, save_pictures

FILES = {"index.html", "report.json", "junit.xml", "model_card.md"}


def not_a_number() -> Evidence:
    measured = measurement(threshold=nan, general_scores=(nan,))
    judged = (mitigation(score_before=nan, score_after=nan, distance_error=nan),) * 3
    general = measured.variants[0].general.model_copy(
        update={"mean": nan, "largest": nan, "per_prompt": (nan, nan), "diversity_after": nan}
    )
    changes = {"mitigations": judged, "general": general, "trajectory": agreement(nan)}
    return evidence(measurement=measured.model_copy(update={"variants": tuple(v.model_copy(update=changes) for v in measured.variants)}))


CASES = {
    "everything": evidence(),
    "no times": evidence(latency=None, machine=None, date=None),
    "no training pictures": evidence(training=False),
    "nothing memorized": evidence(memorized=False),
    "one variant": evidence(variants=("baked",)),
    "masked alone": evidence(variants=("masked",)),
    "one prompt": evidence(prompts=("only",)),
    "no gates": evidence(gates=()),
    "not a number": not_a_number(),
}


@pytest.mark.parametrize("name", CASES)
def test_every_file_is_written(tmp_path: Path, name: str) -> None:
    write_report(tmp_path / "report", CASES[name])
    assert {path.name for path in (tmp_path / "report").iterdir()} == FILES


def test_two_writes_are_the_same_bytes(tmp_path: Path) -> None:
    save_pictures(tmp_path / "full")
    for name in ("a", "b"):
        store_pictures(tmp_path / "full", tmp_path / name / "pictures")
        write_report(tmp_path / name, evidence())
    for file in FILES:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
