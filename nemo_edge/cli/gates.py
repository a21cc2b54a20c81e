"""The gates of a bundle on a terminal, what follows of them, and what to do about those that failed."""

from __future__ import annotations

__all__ = ["random_words", "show_gates", "verdict_of"]

from collections.abc import Sequence
from typing import Any

from rich.markup import escape

from nemo_edge.cli.screen import Console, table_of


def show_gates(out: Console, gates: Sequence[Any]) -> None:
    """A row for each gate; below them the next step for each that failed."""
    from nemo_edge.measure.advice import advice

    table = table_of("Gate", "Measured", "Limit", "Verdict")
    for gate in gates:
        value = "–" if gate.value is None else f"{gate.value:.3g}"
        verdict = "[green]passed[/]" if gate.passed else "[red]failed[/]"
        if gate.unmeasured:
            verdict = f"[yellow]not measured[/]: {escape(gate.gap or gate.detail)}"
        table.add_row(gate.name, value, f"{gate.limit:.3g}", verdict)
    out.print(table)
    failed: dict[str, list[str]] = {}
    for gate in gates:
        if not gate.passed and (step := advice(gate.name)):
            failed.setdefault(step, []).append(gate.name)
    for step, names in failed.items():
        out.print(f"[red]{escape(', '.join(names))}[/]: {escape(step)}", highlight=False)


def verdict_of(judged: Any) -> str:
    """Say what the gates of a bundle come to, marked up; `judged` has `gates` and `passed`."""
    from nemo_edge.bundle.manifest import unjudged

    if judged.passed and (gap := unjudged(judged.gates)):
        return f"[yellow]{escape(gap)}[/]; no gate failed"
    left = sum(gate.unmeasured for gate in judged.gates)
    passed = f"[green]no gate failed[/], {left} not measured" if left else "[green]every gate passed[/]"
    return passed if judged.passed else "[red]a gate failed: this bundle must not be shipped[/]"


def random_words(architecture: str) -> str:
    """Say, marked up, what a bundle of random weights is in place of a verdict."""
    return f"[yellow]random weights ({escape(architecture)}): nothing was measured[/]"
