"""The build in one screen of Markdown, for the job summary of a pipeline."""

from __future__ import annotations

__all__ = ["summary_markdown"]

from nemo_edge.report._markdown import escape, gates_table, latency_table, levels_table, lights_line, mitigation_table
from nemo_edge.report._untested import untested
from nemo_edge.report._verdict import verdict_of
from nemo_edge.report.evidence import Evidence

_MARKS = {"passed": "✅", "failed": "❌", "unmeasured": "➖"}
_UNTESTED = 6
_TARGETS = ("unet", "pipeline")


def summary_markdown(evidence: Evidence) -> str:
    """Return verdict, gates, mitigation and times as GitHub's Markdown. Prompts in it are escaped."""
    verdict = verdict_of(evidence)
    parts = [f"## {_MARKS[verdict.state]} {escape(evidence.name)}: {verdict.headline}"]
    parts += [levels_table(evidence), lights_line(evidence), "\n".join(f"- {line}" for line in verdict.lines)]
    parts += [f"### Gates\n\n{gates_table(evidence)}", f"### Mitigation\n\n{mitigation_table(evidence)}"]
    if evidence.latency is not None:
        parts.append(f"### Times\n\n{latency_table(evidence, _TARGETS)}\n\n{escape(evidence.latency.machine.words)}")
    parts.append(
        "<details><summary>Not tested</summary>\n\n" + "\n".join(f"- {line}" for line in untested(evidence)[:_UNTESTED]) + "\n\n</details>"
    )
    return "\n\n".join(parts) + "\n"
