"""Markdown shows prompts as text, and tables have as many cells in every row."""

from __future__ import annotations

from math import nan

import pytest

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.report._markdown import escape, gates_table, latency_table, levels_table, lights_line, mitigation_table, table
from report.test_evidence import evidence, measurement, mitigation, shown


@pytest.mark.parametrize(
    "text", ["a|b", "<b>", "[x](y)", "`c`", "@all", "https://x.y", "#1", "*b*", "$x$", "www.x.y", ":tada:", "a\\|b", "~~x~~", "&lt;"]
)
def test_no_markup_comes_of_untrusted_text(text: str) -> None:
    escaped = escape(text)
    left = escaped.replace("&#", "")
    assert not set("|<>[]`@*$\\~_#") & set(left)
    assert "://" not in escaped
    assert "www.x" not in escaped


def test_plain_text_stays_readable() -> None:
    assert escape("a cat, 0.05 of it (big): done") == "a cat, 0.05 of it (big): done"
    assert escape("two\nlines") == "two lines"


def rows(text: str) -> list[int]:
    return [line.count("|") for line in text.splitlines()]


def test_tables_are_whole() -> None:
    hostile = evidence(prompts=("a | b", "second", "third"))
    for text in (gates_table(hostile), mitigation_table(hostile), latency_table(hostile), table(("a", "b"), [("1", "2")])):
        assert len(set(rows(text))) == 1
    assert "➖ not measured" in gates_table(hostile)
    assert "masked (noisy)" in latency_table(hostile)
    assert len(rows(latency_table(hostile, ("unet",)))) == 2 + 4
    assert latency_table(evidence(latency=None)) == ""


def test_levels_and_lights_are_marked() -> None:
    assert "| ✅ 0 of 3 examined prompts give a known training picture back |" in levels_table(evidence())
    line = lights_line(evidence())
    assert line.startswith("✅ Memories: held back (0 of 12 pictures are copies, before 12) · ➖ Other pictures: not judged")
    assert "❌ Engine: computes something else" in lights_line(
        evidence(gates=(GateResult(name="engine_error.baked", limit=0, value=1, passed=False),), passed=False)
    )


def test_another_prompts_picture_counts_where_the_own_is_not_known() -> None:
    measured = measurement()
    judged = (mitigation(), mitigation(training=False, before=shown(None, others=0), after=shown(None, others=2)))
    variants = tuple(v.model_copy(update={"mitigations": judged}) for v in measured.variants)
    text = mitigation_table(evidence(measurement=measured.model_copy(update={"variants": variants})))
    assert "| after, baked | 1 of 2 | 2 of 8 pictures (at most 91 % of a prompt's) |" in text


def test_a_score_that_is_not_a_number_is_not_hidden_by_a_larger_one() -> None:
    measured = measurement()
    judged = (mitigation(score_after=0.3), mitigation(score_after=nan), mitigation(score_after=0.1))
    variants = tuple(v.model_copy(update={"mitigations": judged}) for v in measured.variants)
    assert "not a number" in mitigation_table(evidence(measurement=measured.model_copy(update={"variants": variants})))
