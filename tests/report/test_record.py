"""`report.json` is valid JSON whatever was measured, and fits the published schema."""

from __future__ import annotations

import json
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.report._record import Report, record
from nemo_edge.report._verdict import verdict_of
from nemo_edge.report.evidence import Evidence
from report.test_evidence import evidence, measurement, mitigation, policies

SCHEMA = Path(__file__).parents[2] / "docs" / "report.schema.json"


def not_finite() -> Evidence:
    measured = measurement(threshold=nan, curve=())
    variants = tuple(v.model_copy(update={"mitigations": (mitigation(score_after=inf),) * 3}) for v in measured.variants)
    gates = (
        GateResult(name="replication.baked", limit=0.1, value=nan, passed=False),
        GateResult(name="b", limit=inf, value=-inf, passed=True),
    )
    return evidence(measurement=measured.model_copy(update={"variants": variants}), gates=gates, passed=False)


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


@pytest.mark.parametrize("made", [evidence(policies=policies()), evidence(latency=None, machine=None, date=None), not_finite()])
def test_it_is_valid_json_and_fits_the_schema(made: Evidence) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    written: Any = json.loads(record(made).model_dump_json(), parse_constant=refuse)
    jsonschema.validate(written, json.loads(SCHEMA.read_text()))


def test_it_comes_back() -> None:
    made = record(evidence())
    assert Report.model_validate_json(made.model_dump_json()) == made
    assert made.schema_version == 6
    assert (made.verdict, made.headline) == (verdict_of(evidence()).state, verdict_of(evidence()).headline)
    assert [light.name for light in made.lights] == ["Memories", "Other pictures", "Engine", "Time"]
    assert made.headline.endswith(made.claim)
    first = made.copies[0]
    assert (first.variant, first.prompts, first.known, first.leaking, first.pictures, first.copies) == ("baked", 3, 3, 0, 12, 0)
    assert first.bound == pytest.approx(0.527129)
    assert (record(evidence(training=False)).verdict, record(evidence(training=False)).copies[0].bound) == ("unmeasured", 1)
    assert made.localizations[0].refined == 2
    assert made.localizations[0].per_layer == (1, 1)


def test_policies_are_told_in_short() -> None:
    made = record(evidence(policies=policies())).policies
    assert made is not None
    assert [(cluster.name, cluster.neurons, cluster.prompts) for cluster in made.clusters] == [("first", 3, 5), ("second", 1, 1)]
    assert made.threshold is not None
    assert made.rates is not None
    assert (made.rates.paraphrases, made.rates.general) == (2, 5)
    assert record(evidence()).policies is None
