"""JUnit that a pipeline can read, whatever a prompt holds."""

from __future__ import annotations

from xml.etree import ElementTree

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.report.junit import junit_xml


def test_a_case_for_each_gate_and_a_failure_for_each_that_failed() -> None:
    gates = [
        GateResult(name="a", limit=1, value=0.5, passed=True),
        GateResult(name="b", limit=1, value=2, passed=False, detail='<&"\x00 prompt'),
        GateResult(name="c", limit=1, value=None, passed=True, detail="no picture"),
    ]
    suite = ElementTree.fromstring(junit_xml("demo", gates))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("3", "1", "1")
    assert [case.get("name") for case in suite] == ["a", "b", "c"]
    failure = suite[1].find("failure")
    assert failure is not None
    assert failure.get("message") == 'b: 2, limit 1 <&"� prompt'
    assert suite[0].find("failure") is None
    assert [len(case.findall("skipped")) for case in suite] == [0, 0, 1]


def test_a_gate_that_holds_for_too_few_is_skipped_and_one_that_fails_fails() -> None:
    gap = "4 of 16 examined prompts have no known training picture"
    gates = [GateResult(name=f"replication.{i}", limit=0, value=value, passed=value == 0, gap=gap) for i, value in enumerate((0, 0.5))]
    suite = ElementTree.fromstring(junit_xml("demo", gates))
    assert (suite.get("failures"), suite.get("skipped")) == ("1", "1")
    assert [next(child.tag for child in case) for case in suite] == ["skipped", "failure"]
