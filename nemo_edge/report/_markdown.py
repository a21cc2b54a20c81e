"""Markdown of untrusted text: escaped cells and tables that render the same on GitHub and on the Hugging Face hub."""

from __future__ import annotations

__all__ = ["escape", "gates_table", "latency_table", "levels_table", "lights_line", "mitigation_table", "table"]

import re
from collections.abc import Iterable, Sequence

from nemo_edge.measure.mitigation import PromptMitigation
from nemo_edge.report._leaks import leak_of
from nemo_edge.report._levels import levels_of
from nemo_edge.report._lights import lights_of, time_light
from nemo_edge.report._numbers import clipped, count, number, ratio
from nemo_edge.report._verdict import gate_words, variant_words
from nemo_edge.report.evidence import Evidence

_MARKUP = re.compile(r"[!-&*+/<-@\[-`{-~]|[.:](?=[^\s\d])")


def escape(text: str, length: int = 200) -> str:
    """Return untrusted text that Markdown shows as it is: no markup, link, mention or HTML comes of it."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", clipped(text, length))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: int = 1) -> str:
    """Return a table whose columns from `right` on are aligned to the right. Cells are escaped already."""
    rules = ["---" if place < right else "---:" for place in range(len(header))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rules, *rows))


def gates_table(evidence: Evidence) -> str:
    """Return the gates with their verdicts."""
    marks = {True: "✅ passed", False: "❌ failed"}
    rows = [
        (
            f"`{gate.name}`",
            "➖ not measured" if gate.unmeasured else marks[gate.passed],
            escape(f"{gate_words(gate.name)}{'; ' if gate.detail and gate_words(gate.name) else ''}{gate.detail}", 320),
            number(gate.value),
            number(gate.limit),
        )
        for gate in evidence.gates
    ]
    return table(("Gate", "Verdict", "What", "Measured", "Limit"), rows, right=3)


def levels_table(evidence: Evidence) -> str:
    """Return what is protected against whom."""
    marks = {"held": "✅", "broken": "❌", "open": "➖"}
    rows = [
        (f"{level.name}: {level.who}", f"{marks[level.state]} {level.figure}", escape(level.detail, 320)) for level in levels_of(evidence)
    ]
    return table(("Against", "Found", "How"), rows, right=3)


def lights_line(evidence: Evidence) -> str:
    """Return what the gates come to, question by question; time is the last."""
    marks = {"good": "✅", "bad": "❌", "open": "➖"}
    return " · ".join(f"{marks[e.state]} {e.name}: {e.word} ({escape(e.figure)})" for e in (*lights_of(evidence), time_light(evidence)))


def mitigation_table(evidence: Evidence) -> str:
    """Return what leaked and what is left, a row for each set of pictures."""
    measured = evidence.measurement
    first = measured.variants[0].mitigations
    rows = [_mitigation_row("before", first, "before", "score_before", None)]
    rows += [_mitigation_row(v.variant, v.mitigations, "after", "score_after", v.general.mean) for v in measured.variants]
    rows.append(_mitigation_row("random", first, "random", None, None))
    return table(("Pictures", "Examined prompts that leak", "Copies (95 % bound)", "Highest score", "Change of general pictures"), rows)


def _mitigation_row(
    which: str, mitigations: Sequence[PromptMitigation], view: str, score: str | None, drift: float | None
) -> tuple[str, ...]:
    leak, memorized = leak_of(mitigations, view), [m for m in mitigations if m.neurons]
    scores = [float(getattr(m, score)) for m in memorized] if score else []
    highest = next((s for s in scores if s != s), max(scores, default=None))  # a score that is not a number is the news
    prompts = f"{leak.leaking} of {leak.prompts}" if leak.prompts else "–"
    copies = f"{leak.copies} of {count(leak.pictures, 'picture')}" if leak.prompts else "–"
    copies += f" ({leak.bound} of a prompt's)" if leak.prompts and leak.bound else ""
    return variant_words(which), prompts, copies, number(highest), number(drift, 2)


def latency_table(evidence: Evidence, targets: Sequence[str] = ("text_encoder", "unet", "vae_decoder", "pipeline")) -> str:
    """Return the times of the first case of each of the targets; empty where none were taken."""
    latency = evidence.latency
    if latency is None:
        return ""
    rows = []
    memory = {c.name: c.peak_memory_mib for c in latency.contenders}
    firsts = {case.target: case for case in reversed(latency.cases)}
    for case in (firsts[target] for target in targets if target in firsts):
        ratios = {r.contender: r for r in case.ratios if r.reference == "eager"}
        for t in case.timings:
            name = t.contender + (" (noisy)" if t.noisy else "")
            beside = ratios.get(t.contender)
            words = f", {beside.words}" if beside else ""
            times = (number(t.p50_ms), number(t.p99_ms), number(t.images_per_s), ratio(beside) + words)
            rows.append((f"{case.target}, {case.height}×{case.width}", name, *times, number(memory.get(t.contender))))
    return table(("Target", "Contender", "p50 ms", "p99 ms", "Pictures/s", "Time over eager (95 %)", "Peak MiB"), rows, right=2)
