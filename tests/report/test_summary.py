"""The job summary fits a screen and carries the verdict."""

from __future__ import annotations

from dataclasses import replace

from test_evidence import evidence

from nemo_edge.bundle import GateResult
from nemo_edge.report import summary_markdown


def test_it_is_short_and_says_it_first() -> None:
    text = summary_markdown(evidence())
    assert len(text.splitlines()) <= 60
    assert text.splitlines()[0] == "## ✅ toy: Every gate passed. This bundle can be shipped. 1 gate had nothing to judge."
    assert "### Times" in text
    assert "✅ passed" in text


def test_a_failed_gate_stands_out_and_prompts_are_text() -> None:
    failed = GateResult(name="replication.baked", limit=0.1, value=1, passed=False, detail="<img src=x> | @all")
    text = summary_markdown(replace(evidence(), passed=False, gates=(failed,), latency=None))
    assert text.startswith("## ❌ toy")
    assert "❌ failed" in text
    assert "<img" not in text
    assert "### Times" not in text
