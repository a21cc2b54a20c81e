"""Each gate passes at its limit, fails above it and for what is not a number, and can be turned off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nemo_edge.fidelity import GeneralDrift, Measurement, PromptMitigation, StepError, TrajectoryAgreement, VariantMeasurement
from nemo_edge.gates import judge
from nemo_edge.localization import Localization
from nemo_edge.neurons import NeuronSet, ValueLayer
from nemo_edge.recipe import CheckpointSettings, ExportSettings, GateSettings, PromptSettings, Recipe

NEURONS = NeuronSet.from_lists([ValueLayer(name="down", width=4)], [[1]])


def localization(floor: bool = False) -> Localization:
    return Localization(
        inputs="i",
        prompt="p",
        memorized=True,
        threshold=0.4,
        score=0.9,
        seeds=(0,),
        initial=NEURONS,
        initial_score=0.3,
        refined=NEURONS,
        refined_score=0.3,
        floor=floor,
        theta=5.0,
        k=0,
        evaluations=1,
        seconds=0.1,
    )


def measurement(error: float = 1e-6, drift: float = 0.01, untouched: bool = True, **mitigation: Any) -> Measurement:
    agreement = TrajectoryAgreement(steps=(StepError(time=1, output=error, latents=0),), picture_levels=0)
    values = {"prompt": "p", "kind": "VM", "neurons": 1, "seeds": 4, "score_before": 0.9, "score_after": 0.4}
    values |= {"copies_before": 4, "copies_after": 0, "copies_random": 4, "others_after": 0}
    judged = PromptMitigation.model_validate({**values, **mitigation})
    general = GeneralDrift(mean=drift, largest=drift, per_prompt=(drift,))
    variant = VariantMeasurement(variant="baked", trajectory=agreement, mitigations=(judged,), general=general)
    return Measurement(
        threshold=0.4, copy_threshold=0.2, neurons=1, random_neurons=1, variants=(variant,), untouched=agreement if untouched else None
    )


def recipe(gates: GateSettings) -> Recipe:
    prompts = PromptSettings(memorized=Path("m"), general=Path("g"))
    return Recipe(name="r", output=Path("o"), checkpoint=CheckpointSettings(path="c"), prompts=prompts, gates=gates)


def failed(measured: Measurement, settings: GateSettings | None = None, floor: bool = False) -> list[str]:
    return [g.name for g in judge(measured, [localization(floor)], recipe(settings or GateSettings())) if not g.passed]


def test_at_the_limits_everything_passes() -> None:
    assert failed(measurement(error=1e-4, drift=0.1)) == []


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"score_after": 0.41}, "memorization_score.baked"),
        ({"copies_after": 1}, "replication.baked"),
        ({"others_after": 1}, "replication.baked"),
        ({"drift": 0.11}, "general_drift.baked"),
        ({"drift": float("nan")}, "general_drift.baked"),
    ],
)
def test_a_value_above_its_limit_fails_its_gate_alone(changes: dict[str, Any], gate: str) -> None:
    assert failed(measurement(**changes)) == [gate]


@pytest.mark.parametrize("error", [2e-4, float("nan"), float("inf")])
def test_an_engine_that_does_not_agree_fails(error: float) -> None:
    assert failed(measurement(error=error)) == ["engine_error.baked", "engine_error.untouched"]


def test_the_floor_of_the_schedule_fails() -> None:
    assert failed(measurement(), floor=True) == ["schedule_floor"]


def test_gates_can_be_loosened_and_turned_off() -> None:
    bad = measurement(error=1.0, drift=1.0, score_after=1.0, copies_after=4)
    off = GateSettings(memorization_score=False, schedule_floor=False, replication=False, general_drift=False, engine_error=False)
    assert judge(bad, [localization()], recipe(off)) == ()
    assert failed(measurement(score_after=0.6), GateSettings(memorization_score=0.7)) == []


@pytest.mark.parametrize(
    ("changes", "gate", "why"),
    [
        ({"copies_before": 0}, "replication.baked", "no prompt gave back its training picture"),
        ({"copies_before": None}, "replication.baked", "no training picture is known"),
        ({"neurons": 0}, "memorization_score.baked", "no prompt of the list is memorized"),
    ],
)
def test_what_cannot_be_measured_is_said_and_does_not_fail(changes: dict[str, Any], gate: str, why: str) -> None:
    judged = {g.name: g for g in judge(measurement(**changes), [localization()], recipe(GateSettings()))}
    assert (judged[gate].value, judged[gate].passed, judged[gate].detail) == (None, True, why)
    assert all(g.value is not None for name, g in judged.items() if name != gate)


def test_one_score_that_is_not_a_number_fails_wherever_it_stands() -> None:
    measured = measurement()
    (variant,) = measured.variants
    good, nan = variant.mitigations[0], variant.mitigations[0].model_copy(update={"score_after": float("nan")})
    for order in ((good, nan), (nan, good)):
        worse = measured.model_copy(update={"variants": (variant.model_copy(update={"mitigations": order}),)})
        assert failed(worse) == ["memorization_score.baked"]
        assert failed(Measurement.model_validate_json(worse.model_dump_json())) == ["memorization_score.baked"]


@pytest.mark.parametrize(("dtype", "limit"), [("fp32", 1e-4), ("fp16", 0.05)])
def test_the_limit_of_an_engine_s_error_follows_its_type(dtype: str, limit: float) -> None:
    settings = recipe(GateSettings()).model_copy(update={"export": ExportSettings(dtype=dtype)})  # type: ignore[arg-type]
    gates = judge(measurement(), [localization()], settings)
    assert {g.limit for g in gates if g.name.startswith("engine_error")} == {limit}
