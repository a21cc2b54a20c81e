"""What to do about each gate."""

from __future__ import annotations

import pytest

from nemo_edge.measure.advice import ADVICE, advice
from nemo_edge.recipe.settings import GateSettings


def test_every_gate_has_a_next_step() -> None:
    assert set(ADVICE) == set(GateSettings.model_fields)


@pytest.mark.parametrize("name", ["replication", "replication.baked", "replication.masked"])
def test_the_variant_does_not_matter(name: str) -> None:
    assert advice(name) == ADVICE["replication"]
