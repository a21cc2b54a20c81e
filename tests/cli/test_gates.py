"""How gates look on a terminal."""

from __future__ import annotations

import pytest

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.cli.gates import show_gates
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
