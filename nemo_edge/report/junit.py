"""Gates as JUnit XML, a test case each, for release pipelines."""

from __future__ import annotations

__all__ = ["junit_xml"]

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from nemo_edge.bundle.manifest import GateResult

_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # not allowed in XML 1.0


def junit_xml(bundle: str, gates: Sequence[GateResult]) -> str:
    """Return the XML of one test suite; a failed gate is a failure with its value and limit, one that was not measured is skipped."""
    failures, skipped = sum(not gate.passed for gate in gates), sum(gate.unmeasured for gate in gates)
    counts = {"tests": str(len(gates)), "failures": str(failures), "skipped": str(skipped)}
    suite = ElementTree.Element("testsuite", {"name": f"nemo-edge {bundle}", **counts})
    for gate in gates:
        case = ElementTree.SubElement(suite, "testcase", classname="nemo_edge.gates", name=gate.name)
        value = "not measured" if gate.value is None else f"{gate.value:.4g}"
        text = _FORBIDDEN.sub("�", f"{gate.name}: {value}, limit {gate.limit:.4g} {gate.detail}".strip())
        if gate.unmeasured:
            ElementTree.SubElement(case, "skipped", message=text)
        elif not gate.passed:
            ElementTree.SubElement(case, "failure", message=text)
        ElementTree.SubElement(case, "system-out").text = text
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
