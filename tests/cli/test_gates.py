"""How gates look on a terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.cli.gates import random_words, show_gates, verdict_of
from nemo_edge.cli.screen import Console
from nemo_edge.measure.advice import ADVICE


def test_those_that_failed_have_a_next_step_each_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    gates = [
        GateResult(name="replication.baked", limit=0, value=0.5, passed=False),
        GateResult(name="replication.masked", limit=0, value=0.5, passed=False),
        GateResult(name="general_drift.baked", limit=0.1, value=0.01, passed=True),
        GateResult(name="slow_down.baked", limit=1.05, value=None, passed=True, detail="no times were taken"),
    ]
    show_gates(Console(), gates)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"replication.baked, replication.masked: {ADVICE['replication']}" in shown
    assert ADVICE["general_drift"] not in shown
    assert "not measured: no times were taken" in shown


COPIES = GateResult(name="replication.baked", limit=0, value=0, passed=True)
UNTAKEN = GateResult(name="slow_down.baked", limit=1.05, value=None, passed=True)


@pytest.mark.parametrize(
    ("gates", "passed", "said"),
    [
        ([COPIES], True, "[green]every gate passed[/]"),
        ([COPIES, UNTAKEN], True, "[green]no gate failed[/], 1 not measured"),
        ([UNTAKEN], True, "[yellow]Copies were not judged: the gate replication is off[/]; no gate failed"),
        (
            [COPIES.model_copy(update={"gap": "4 prompts have no picture"})],
            True,
            "[yellow]Copies were not measured: 4 prompts have no picture[/]; no gate failed",
        ),
        ([COPIES], False, "[red]a gate failed: this bundle must not be shipped[/]"),
    ],
)
def test_what_was_not_measured_is_no_pass(gates: list[GateResult], passed: bool, said: str) -> None:
    assert verdict_of(SimpleNamespace(gates=gates, passed=passed)) == said


def test_an_architecture_is_no_markup() -> None:
    assert random_words("[red]x") == r"[yellow]random weights (\[red]x): nothing was measured[/]"
