"""What an attack came to, before the gates of a build."""

from __future__ import annotations

import pytest
from measure.attacks.test_base import level_of
from measure.test_gates import localization, measurement, recipe
from report.test_levels import campaign

from nemo_edge.measure.gates import judge
from nemo_edge.recipe.settings import GateSettings


@pytest.mark.parametrize(
    ("control", "back", "value", "passed"),
    [(20, 0, 0.0, True), (20, 1, 0.05, False), (10, 0, None, True), (10, 1, 0.05, False)],
)
def test_text_may_bring_no_memory_back_and_an_attack_that_is_too_weak_decides_nothing(
    control: int, back: int, value: float | None, passed: bool
) -> None:
    """One that is weak and succeeds all the same fails."""
    attack = campaign(level_of(control, back, attack="text"), level_of(20, 20))
    gates = {gate.name: gate for gate in judge(measurement(), [localization()], recipe(), attack=attack)}
    found = gates["attack_text"]
    assert (found.value, found.passed) == (value, passed)
    assert ("too weak to tell" in found.gap) is (value is None)
    assert "attack_embedding" not in gates, "off by default"
    asked = recipe(GateSettings(attack_embedding=0.5, attack_text=False))
    gates = {gate.name: gate for gate in judge(measurement(), [localization()], asked, attack=attack)}
    assert (gates["attack_embedding"].value, gates["attack_embedding"].passed) == (1.0, False)
    assert "attack_text" not in gates
