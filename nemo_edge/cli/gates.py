"""The gates of a bundle on a terminal, and what to do about those that failed."""

from __future__ import annotations

__all__ = ["show_gates"]

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
