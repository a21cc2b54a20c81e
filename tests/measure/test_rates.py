"""What a machine can do at best."""

from __future__ import annotations

import pytest

from nemo_edge.measure._rates import Rates, measure_rates
from nemo_edge.recipe.targets import EngineSettings


def test_the_longer_of_both_is_the_limit() -> None:
    rates = Rates(gflops=100, gbytes=10)
    assert rates.limit_ms(2e9, 1e6) == pytest.approx(20)
    assert rates.limit_ms(2e6, 1e9) == pytest.approx(100)


def test_rates_are_measured_in_the_runtime_that_is_asked_for() -> None:
    found = measure_rates(EngineSettings(threads=1))
    assert found.gflops > 1
    assert found.gbytes > 0.1
