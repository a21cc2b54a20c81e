"""The job summary fits a screen and carries the verdict."""

from __future__ import annotations

from dataclasses import replace

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.report.summary import summary_markdown
from report.test_evidence import evidence


def test_it_is_short_and_says_it_first() -> None:
    text = summary_markdown(evidence())
    assert len(text.splitlines()) <= 60
    assert text.splitlines()[0] == (
        "## ✅ toy: No gate failed, 1 had nothing to judge. None of the 3 examined prompts gives back a known training picture, in any of "
        "12 pictures (at most 53 % of a prompt's, with 95 % confidence)."
    )
    assert "### Times" in text
    assert "✅ passed" in text


def test_what_was_not_measured_has_no_mark_of_a_pass() -> None:
    first = summary_markdown(evidence(training=False)).splitlines()[0]
    assert first.startswith("## ➖ toy: Copies were not measured: 3 of 3 examined prompts have no known training picture. No gate failed")


def test_the_counts_carry_their_bound() -> None:
    text = summary_markdown(evidence())
    assert "| after, baked | 0 of 3 | 0 of 12 pictures (at most 53 % of a prompt's) |" in text
    assert "| before | 3 of 3 | 12 of 12 pictures |" in text


def test_a_failed_gate_stands_out_and_prompts_are_text() -> None:
    failed = GateResult(name="replication.baked", limit=0.1, value=1, passed=False, detail="<img src=x> | @all")
    text = summary_markdown(replace(evidence(), passed=False, gates=(failed,), latency=None))
    assert text.startswith("## ❌ toy")
    assert "❌ failed" in text
    assert "<img" not in text
    assert "### Times" not in text
