"""The ROC is that of counting pairs, ties included."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_edge.localization.roc import roc
from nemo_edge.system.errors import InputError


def pairs(memorized: np.ndarray, general: np.ndarray) -> float:
    return float(np.mean([(m > g) + (m == g) / 2 for m in memorized for g in general]))


def test_a_curve_by_hand() -> None:
    found = roc("d", np.array([3.0, 2.0]), np.array([2.0, 1.0]), 10)
    assert (found.memorized, found.general, found.rows) == (2, 2, 10)
    assert found.auroc == (1 + 1 + 0.5 + 1) / 4
    assert found.false_positives == (0, 0, 0.5, 1)
    assert found.true_positives == (0, 0.5, 1, 1)
    assert roc("d", np.array([3.0]), np.array([5.0, 4, 2, 1]), 1).false_positives == (0, 0.5, 0.5, 1)
    assert found.tpr_at_1 == 0.5
    assert found.low <= found.auroc <= found.high


@pytest.mark.parametrize("seed", range(5))
def test_it_is_that_of_counting_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    memorized, general = rng.integers(0, 9, 40) + rng.integers(0, 4), rng.integers(0, 9, 130)
    found = roc("d", memorized.astype(float), general.astype(float), 1)
    assert found.auroc == pytest.approx(pairs(memorized, general))
    area = np.trapezoid(found.true_positives, found.false_positives)
    assert area == pytest.approx(found.auroc)


def test_the_share_found_at_one_percent() -> None:
    general = np.arange(200.0)
    memorized = np.array([500.0, 199.5, 198.5, 197.5, 3.0])
    assert roc("d", memorized, general, 1).tpr_at_1 == pytest.approx(4 / 5)  # two of 200 may be above
    assert roc("d", memorized[:1], general, 1).auroc == 1


@pytest.mark.parametrize(("memorized", "general", "missing"), [((), (1.0,), "memorized"), ((1.0,), (), "not memorized")])
def test_both_kinds_are_needed(memorized: tuple[float, ...], general: tuple[float, ...], missing: str) -> None:
    with pytest.raises(InputError, match=f"none is labelled {missing}: add some"):
        roc("d", np.array(memorized), np.array(general), 1)
