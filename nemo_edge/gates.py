"""The gates: what a bundle must hold to be shipped, judged from what was measured."""

from __future__ import annotations

__all__ = ["judge"]

from collections.abc import Iterator, Sequence
from math import inf, isnan
from typing import Literal

from nemo_edge.bundle import GateResult
from nemo_edge.fidelity import Measurement, VariantMeasurement
from nemo_edge.localization import Localization
from nemo_edge.recipe import GateSettings, Recipe


def judge(measurement: Measurement, localizations: Sequence[Localization], recipe: Recipe) -> tuple[GateResult, ...]:
    """Return every gate that applies, in a fixed order. A value that is not a number fails; without one nothing was there to measure."""
    gates, tolerance = recipe.gates, recipe.engine_tolerance
    results = []
    if gates.schedule_floor is not False:
        floors = [r.prompt for r in localizations if r.floor]
        results.append(
            _gate("schedule_floor", gates.schedule_floor, len(floors), f"prompts at the floor: {', '.join(floors)}" if floors else "")
        )
    for variant in measurement.variants:
        results += _of_variant(variant, measurement, gates, tolerance)
    if measurement.untouched is not None and tolerance is not False:
        results.append(_gate("engine_error.untouched", tolerance, measurement.untouched.largest_error, "mask of ones"))
    return tuple(results)


def _of_variant(
    variant: VariantMeasurement, measurement: Measurement, gates: GateSettings, tolerance: float | Literal[False]
) -> Iterator[GateResult]:
    name, memorized = variant.variant, [m for m in variant.mitigations if m.neurons]
    if gates.memorization_score is not False:
        limit = measurement.threshold if gates.memorization_score is None else gates.memorization_score
        if memorized:
            worst = max(memorized, key=lambda m: inf if isnan(m.score_after) else m.score_after)
            yield _gate(f"memorization_score.{name}", limit, worst.score_after, worst.prompt)
        else:
            yield _gate(f"memorization_score.{name}", limit, None, "no prompt of the list is memorized")
    copied = [m for m in variant.mitigations if m.copies_before]
    if gates.replication is not False and not copied:
        known = any(m.copies_before is not None for m in variant.mitigations)
        why = "no prompt gave back its training picture" if known else "no training picture is known"
        yield _gate(f"replication.{name}", gates.replication, None, why)
    elif gates.replication is not False:
        still = [m.prompt for m in copied if m.copies_after or m.others_after]
        detail = f"of {len(copied)} prompts" + (f": {', '.join(still)}" if still else "")
        yield _gate(f"replication.{name}", gates.replication, len(still) / len(copied), detail)
    if gates.general_drift is not False:
        yield _gate(f"general_drift.{name}", gates.general_drift, variant.general.mean, f"largest {variant.general.largest:.3f}")
    if tolerance is not False:
        yield _gate(f"engine_error.{name}", tolerance, variant.trajectory.largest_error, "whole trajectory")


def _gate(name: str, limit: float, value: float | None, detail: str = "") -> GateResult:
    passed = value is None or bool(value <= limit)
    return GateResult(name=name, limit=float(limit), value=None if value is None else float(value), passed=passed, detail=detail)
