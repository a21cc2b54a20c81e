"""Each gate passes at its limit, fails above it and for what is not a number, and can be turned off."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.localization.groups import Group, Variant
from nemo_edge.localization.localizer import Localization
from nemo_edge.measure.fidelity import Agreement, StepError
from nemo_edge.measure.gates import judge
from nemo_edge.measure.latency import Case, Latency, Visit, ratio_of, timing_of
from nemo_edge.measure.mitigation import GeneralDrift, Measurement, PromptMitigation, Shown, VariantMeasurement
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import CheckpointSettings, ExportSettings, FidelitySettings, GateSettings, LatencySettings, PromptSettings
from nemo_edge.system.environment import machine

NEURONS = NeuronSet.from_lists([ValueLayer(name="down", width=4)], [[1]])
OFF = GateSettings.model_validate(dict.fromkeys(GateSettings.model_fields, False))


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
        samples=10,
        closest=0.1,
        exact=0,
        seconds=0.1,
    )


def shown(copies: int | None = 0, others: int | None = 0) -> Shown:
    return Shown(copies=copies, others=others, distance=0.5, diversity=0.5)


def mitigation(
    prompt: str = "p", before: int | None = 4, after: int | None = 0, others: int | None = 0, **changes: Any
) -> PromptMitigation:
    values = {"prompt": prompt, "kind": "VM", "neurons": 1, "seeds": 4, "score_before": 0.9, "score_after": 0.4, "score_after_eager": 0.4}
    views = {"before": shown(before, None if others is None else 0), "after": shown(None if before is None else after, others)}
    views["random"] = views["before"]
    return PromptMitigation.model_validate({**values, **views, "distance_error": 0.0, **changes})


def measurement(
    error: float = 1e-6,
    mitigations: tuple[PromptMitigation, ...] | None = None,
    variant: str = "baked",
    ones: float | None = None,
    untouched: bool = True,
    general: dict[str, float] | None = None,
    **changes: Any,
) -> Measurement:
    agreement = Agreement(steps=(StepError(time=1, forced=0, output=error, latents=0),), picture_levels=0, ssim=1, psnr=inf)
    drift = {"mean": 0.01, "largest": 0.05, "latents": 0.1, "diversity_before": 0.5, "diversity_after": 0.5, **(general or {})}
    judged = mitigations or (mitigation(**changes),)
    made = VariantMeasurement(
        variant=variant, trajectory=agreement, mitigations=judged, general=GeneralDrift.model_validate({"per_prompt": (0.01,), **drift})
    )
    return Measurement(
        threshold=0.4,
        copy_threshold=0.2,
        general_scores=(0.1, 0.3),
        layers=("down",),
        neurons=1,
        random_neurons=1,
        found=((),),
        general_prompts=("a house",),
        variants=(made,),
        untouched=agreement if untouched else None,
        mask_of_ones=ones,
    )


def latency(
    ratio: float = 1.0,
    rounds: int = 6,
    target: str = "unet",
    references: tuple[str, ...] = ("unmitigated", "eager"),
    spread: dict[str, float] | None = None,
) -> Latency:
    """Times of 8 ms, each visit with one faster and one slower call where a contender has a spread: the ratio stays, the noise grows."""

    def timed(contender: str, middle: float) -> Any:
        off = middle * (spread or {}).get(contender, 0.0)
        return timing_of(contender, [Visit((middle - off, middle + off), 2 * middle)] * rounds, 1, (6, True), LatencySettings())

    timings = (*(timed(name, 8.0) for name in references), timed("baked", 8.0 * ratio))
    ratios = tuple(ratio_of(timings[-1], reference) for reference in timings[:-1])
    place = {"target": target, "batch": 1, "height": 8, "width": 8, "steps": None}
    case = Case.model_validate({**place, "timings": timings, "ratios": ratios})
    return Latency(machine=machine(), date="d", seconds=1, settings=LatencySettings(), contenders=(), cases=(case,))


def recipe(gates: GateSettings | None = None, **tables: Any) -> Recipe:
    prompts = PromptSettings(memorized=Path("m"), general=Path("g"))
    settings = gates or GateSettings()
    return Recipe(name="r", output=Path("o"), checkpoint=CheckpointSettings(path="c"), prompts=prompts, gates=settings, **tables)


def failed(
    measured: Measurement, settings: GateSettings | None = None, floor: bool = False, timed: Latency | None = None, **tables: Any
) -> list[str]:
    return [g.name for g in judge(measured, [localization(floor)], recipe(settings, **tables), timed) if not g.passed]


def test_at_the_limits_everything_passes() -> None:
    at = measurement(error=1e-4, general={"mean": 0.1, "diversity_after": 0.45}, score_after_eager=0.4005, distance_error=1e-3)
    assert failed(at, timed=latency(1.05)) == []
    assert all(g.value is not None for g in judge(at, [localization()], recipe(), latency(1.05)))


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"score_after": 0.41, "score_after_eager": 0.41}, "memorization_score.baked"),
        ({"after": 1}, "replication.baked"),
        ({"others": 1}, "replication.baked"),
        ({"general": {"mean": 0.11}}, "general_drift.baked"),
        ({"general": {"mean": nan}}, "general_drift.baked"),
        ({"general": {"diversity_after": 0.44}}, "diversity_loss.baked"),
        ({"general": {"diversity_after": nan}}, "diversity_loss.baked"),
        ({"score_after_eager": 0.3985}, "mitigation_agreement.baked"),
        ({"distance_error": 0.0011}, "mitigation_agreement.baked"),
        ({"score_after_eager": nan}, "mitigation_agreement.baked"),
        ({"distance_error": nan}, "mitigation_agreement.baked"),
    ],
)
def test_a_value_above_its_limit_fails_its_gate_alone(changes: dict[str, Any], gate: str) -> None:
    assert failed(measurement(**changes)) == [gate]
    assert failed(Measurement.model_validate_json(measurement(**changes).model_dump_json())) == [gate]


@pytest.mark.parametrize("error", [2e-4, nan, inf])
def test_an_engine_that_does_not_agree_fails(error: float) -> None:
    assert failed(measurement(error=error)) == ["engine_error.baked", "engine_error.untouched"]


def test_the_floor_of_the_schedule_fails() -> None:
    assert failed(measurement(), floor=True) == ["schedule_floor"]


def test_every_gate_can_be_turned_off() -> None:
    bad = measurement(error=1.0, general={"mean": 1.0}, score_after=1.0, after=4, variant="masked", ones=1.0)
    assert judge(bad, [localization(True)], recipe(OFF), latency(9)) == ()


def test_gates_can_be_loosened_and_tightened() -> None:
    settings = GateSettings(memorization_score=0.7, mitigation_agreement=0.3)
    assert failed(measurement(score_after=0.6), settings) == []
    assert failed(measurement(), GateSettings(latent_drift=0.05)) == ["latent_drift.baked"]
    assert failed(measurement(), GateSettings(latent_drift=0.1)) == []
    assert failed(measurement(), OFF.model_copy(update={"memorization_score": 0})) == ["memorization_score.baked"]  # 0 is not off


def group(*left: tuple[float, float] | None) -> Group:
    """A prompt with variants, each with what is left before and after; None: one that is not memorized."""
    facts: dict[str, Any] = {"inputs": "i", "name": "g", "threshold": 0.4, "members": (), "neurons": NEURONS, "same": 0}
    made = [(f"v{place}", *(each or (None, None))) for place, each in enumerate(left)]
    known: dict[str, Any] = {"prompt": "p", "kind": "drop", "score": 0.9}
    variants = tuple(Variant(text=text, before=before, after=after, **known) for text, before, after in made)
    return Group(variants=variants, samples=1, seconds=1.0, **facts)


def test_paraphrases_are_a_share_of_the_variants_that_are_memorized() -> None:
    def judged(*groups: Group, **gates: Any) -> dict[str, GateResult]:
        return {g.name: g for g in judge(measurement(), [localization()], recipe(GateSettings(**gates)), groups=groups)}

    leaky = group((0.9, 0.5), (0.9, 0.1), (0.1, 0.1), None)
    gate = judged(leaky, group((0.3, 0.3)))["paraphrases"]
    assert (gate.value, gate.passed, gate.detail) == (0.25, False, "of 4 variants: v0")
    assert judged(leaky, paraphrases=0.5)["paraphrases"].passed
    nothing = judged(group(None))["paraphrases"]
    assert (nothing.value, nothing.passed, nothing.detail) == (None, True, "no variant of a prompt is memorized")
    for others in (judged(), judged(group()), judged(leaky, paraphrases=False)):
        assert "paraphrases" not in others


def test_variants_that_the_recipe_asks_for_and_nobody_tried_were_not_measured() -> None:
    asked = recipe(GateSettings())
    asked = asked.model_copy(update={"localization": asked.localization.model_copy(update={"paraphrases": 12})})
    gate = next(g for g in judge(measurement(), [localization()], asked) if g.name == "paraphrases")
    assert (gate.value, gate.unmeasured, gate.detail) == (None, True, "no variant was tried with these neurons")


def replication(*rows: PromptMitigation, **gates: Any) -> GateResult:
    judged = judge(measurement(mitigations=rows), [localization()], recipe(GateSettings(**gates)))
    return next(g for g in judged if g.name == "replication.baked")


QUIET = tuple(mitigation(f"p{i}") for i in range(14))
BOUND = "0 of 4 means at most 53 % of a prompt's pictures"


@pytest.mark.parametrize(
    ("row", "named"),
    [
        (mitigation("still", after=4), "still"),  # from every seed
        (mitigation("swap", others=1), "swap (new)"),  # another's picture in the place of its own
        (mitigation("only after", before=0, after=1), "only after (new)"),
        (mitigation("no own", before=None, others=1), "no own (new)"),
    ],
)
def test_one_prompt_of_fifteen_with_a_copy_fails(row: PromptMitigation, named: str) -> None:
    gate = replication(*QUIET, row)
    assert (gate.value, gate.passed) == (1 / 15, False)
    assert gate.detail.startswith(f"of 15 examined prompts, 4 pictures each: {named}; {BOUND}")
    assert not replication(row, *QUIET).passed
    assert replication(*QUIET, row, replication=0.1).passed  # in the open


def test_a_copy_on_one_variant_fails_that_variant() -> None:
    baked, leaking = (measurement(mitigations=(row,)).variants[0] for row in (mitigation(), mitigation(others=1)))
    both = measurement().model_copy(update={"variants": (baked, leaking.model_copy(update={"variant": "masked"}))})
    assert failed(both, GateSettings(mask_of_ones=False)) == ["replication.masked"]


def test_replication_tells_of_parts_and_does_not_count_them() -> None:
    partly = mitigation("q")
    partly = partly.model_copy(update={"after": partly.after.model_copy(update={"local_copies": 3})})
    gate = replication(*QUIET, partly)
    assert (gate.passed, gate.value) == (True, 0)
    assert "parts of a training picture in those of 1, which no gate counts" in gate.detail
    assert "parts of" not in replication(*QUIET).detail


def test_replication_says_how_much_its_pictures_can_show() -> None:
    gate = replication(*QUIET)
    assert (gate.value, gate.limit, gate.passed, gate.gap) == (0, 0, True, "")
    assert gate.detail == f"of 14 examined prompts, 4 pictures each: {BOUND}"
    assert "10 pictures each: 0 of 10 means at most 26 %" in replication(mitigation(seeds=10)).detail


@pytest.mark.parametrize(("unknown", "gap"), [(3, ""), (4, "4 of 18 examined prompts have no known training picture")])
def test_more_than_one_prompt_in_five_without_its_picture_leaves_a_gap(unknown: int, gap: str) -> None:
    gate = replication(*QUIET, *(mitigation(f"u{i}", before=None) for i in range(unknown)))
    assert (gate.value, gate.passed, gate.gap) == (0, True, gap)
    said = f"{unknown} of {14 + unknown} examined prompts have no known training picture"
    assert gate.detail == f"of {14 + unknown} examined prompts, 4 pictures each: {BOUND}; {said}"
    five = [mitigation(f"q{i}") for i in range(4)]
    assert replication(*five, mitigation("u", before=None)).gap == ""  # one in five is not more
    assert "1 of 5 examined prompts has no known" in replication(*five, mitigation("u", before=None)).detail


@pytest.mark.parametrize(
    ("changes", "gate", "why"),
    [
        ({"before": None, "others": None}, "replication.baked", "no training picture is known"),
        ({"general": {"diversity_before": 0.0}}, "diversity_loss.baked", "needs fidelity.general_seeds = 2 or more"),
    ],
)
def test_what_cannot_be_measured_is_said_and_does_not_fail(changes: dict[str, Any], gate: str, why: str) -> None:
    judged = {g.name: g for g in judge(measurement(**changes), [localization()], recipe(), latency())}
    assert (judged[gate].value, judged[gate].passed, judged[gate].detail) == (None, True, why)
    assert all(g.value is not None for name, g in judged.items() if name != gate)


def test_without_a_memorized_prompt_no_score_is_judged() -> None:
    harmless = localization().model_copy(update={"memorized": False})
    judged = {g.name: g for g in judge(measurement(neurons=0, score_after=0.9), [harmless], recipe(), latency())}
    gate = judged["memorization_score.baked"]
    assert (gate.value, gate.passed, gate.detail) == (None, True, "no prompt of the list is memorized")


def test_one_seed_has_no_diversity_to_lose() -> None:
    one = measurement(general={"diversity_before": nan, "diversity_after": nan})
    assert failed(one, fidelity=FidelitySettings(general_seeds=1)) == []
    assert failed(one, fidelity=FidelitySettings(general_seeds=2)) == ["diversity_loss.baked"]


@pytest.mark.parametrize(
    ("broken", "gate"), [({"score_after": nan, "score_after_eager": nan}, "memorization_score"), ({"distance_error": nan}, "")]
)
def test_one_value_that_is_not_a_number_fails_wherever_it_stands(broken: dict[str, Any], gate: str) -> None:
    rows = (mitigation(), mitigation(**broken))
    expected = [name for name in (f"{gate}.baked" if gate else "", "mitigation_agreement.baked") if name]
    for order in (rows, rows[::-1]):
        assert failed(measurement(mitigations=order)) == expected


@pytest.mark.parametrize(
    ("dtype", "error", "agreement", "ones"), [("fp32", 1e-4, 1e-3, 0.0), ("fp16", 0.05, 0.05, 0.05), ("bf16", 0.2, 0.1, 0.2)]
)
def test_the_limits_of_an_engine_follow_its_type(dtype: str, error: float, agreement: float, ones: float) -> None:
    settings = recipe().model_copy(update={"export": ExportSettings(dtype=dtype)})  # type: ignore[arg-type]
    limits = {g.name: g.limit for g in judge(measurement(variant="masked", ones=0.0), [localization()], settings)}
    assert limits["engine_error.masked"] == limits["engine_error.untouched"] == error
    assert (limits["mitigation_agreement.masked"], limits["mask_of_ones"]) == (agreement, ones)


def test_a_mask_of_ones_must_be_the_unmitigated_engine_bit_for_bit() -> None:
    assert failed(measurement(variant="masked", ones=0.0)) == []
    assert failed(measurement(variant="masked", ones=1e-9)) == ["mask_of_ones"]
    assert failed(measurement(variant="masked", ones=nan)) == ["mask_of_ones"]
    alone = {g.name: g for g in judge(measurement(variant="masked"), [localization()], recipe())}["mask_of_ones"]
    assert (alone.value, alone.passed, alone.detail) == (None, True, "needs the baked variant too")
    assert "mask_of_ones" not in {g.name for g in judge(measurement(), [localization()], recipe())}


def slow_down(timed: Latency | None, gates: GateSettings | None = None) -> Any:
    return {g.name: g for g in judge(measurement(), [localization()], recipe(gates), timed)}["slow_down.baked"]


def test_a_mitigation_that_costs_time_fails() -> None:
    assert failed(measurement(), timed=latency(1.06)) == ["slow_down.baked"]
    gate = slow_down(latency(1.06))
    assert gate.value == pytest.approx(1.06)
    assert gate.detail == "1.060 (1.060 to 1.060), unet, batch 1, 8 × 8"
    assert failed(measurement(), GateSettings(slow_down=1.1), timed=latency(1.06)) == []


def test_an_engine_may_be_asked_to_beat_eager() -> None:
    settings = GateSettings(slow_down=False, eager_ratio=0.9)
    assert failed(measurement(), settings, timed=latency(0.95), latency=LatencySettings()) == ["eager_ratio.baked"]
    assert failed(measurement(), settings, timed=latency(0.9), latency=LatencySettings()) == []
    for wrong in (None, LatencySettings(eager=False), LatencySettings(targets=("pipeline",))):
        with pytest.raises(ValueError, match=r"gates\.eager_ratio needs \[latency\]"):
            recipe(settings, latency=wrong)
    assert "eager_ratio.baked" not in {g.name for g in judge(measurement(), [localization()], recipe(), latency())}


@pytest.mark.parametrize(
    ("timed", "why"),
    [
        (None, "no times were taken: `nemo-edge bench`"),
        (latency(9, target="vae_decoder"), "the UNet's time beside unmitigated was not taken"),
        (latency(9, references=("eager",)), "the UNet's time beside unmitigated was not taken"),
        (latency(9, rounds=4), "unet, batch 1, 8 × 8: 4 rounds are too few for an interval: latency.runs = 5 or more"),
    ],
)
def test_a_time_that_cannot_be_judged_is_said_and_does_not_fail(timed: Latency | None, why: str) -> None:
    gate = slow_down(timed)
    assert (gate.value, gate.passed, gate.detail) == (None, True, why)


@pytest.mark.parametrize("whose", ["baked", "unmitigated"])
@pytest.mark.parametrize("ratio", [1.0, 9.0])
def test_a_noisy_time_decides_nothing(whose: str, ratio: float) -> None:
    """The interval lies on one side of the limit as a whole, and still says nothing."""
    noisy = latency(ratio, spread={whose: 0.3})
    assert noisy.cases[0].ratios[0].low == noisy.cases[0].ratios[0].high == pytest.approx(ratio)
    gate = slow_down(noisy)
    assert (gate.value, gate.passed) == (None, True)
    assert gate.detail == f"unet, batch 1, 8 × 8: the times of {whose} (31 %) vary too much: time it again on a quiet machine"
    assert slow_down(latency(ratio, spread={whose: 0.05})).value == pytest.approx(ratio)


def test_noise_of_others_does_not_hide_a_slow_down() -> None:
    assert not slow_down(latency(9.0, spread={"eager": 0.3})).passed
    slow, loud = latency(9.0), latency(9.0, spread={"baked": 0.3}).cases[0].model_copy(update={"batch": 4})
    gate = slow_down(slow.model_copy(update={"cases": (loud, *slow.cases)}))
    assert (gate.passed, gate.detail) == (False, "9.000 (9.000 to 9.000), unet, batch 1, 8 × 8")


def test_every_case_is_judged() -> None:
    fast, slow = latency(1.0), latency(1.5)
    both = fast.model_copy(update={"cases": (*fast.cases, slow.cases[0].model_copy(update={"batch": 4}))})
    gate = slow_down(both)
    assert (gate.passed, gate.detail) == (False, "1.500 (1.500 to 1.500), unet, batch 4, 8 × 8")
    doubtful = fast.cases[0].ratios[0].model_copy(update={"low": 0.9, "high": 1.2})
    unsure = fast.cases[0].model_copy(update={"batch": 2, "ratios": (doubtful,)})
    gate = slow_down(fast.model_copy(update={"cases": (*fast.cases, unsure)}))
    assert gate.value is None
    assert gate.detail.startswith("unet, batch 2, 8 × 8: the interval of 0.900 to 1.200 is too wide")
    assert not slow_down(both.model_copy(update={"cases": (*both.cases, unsure)})).passed


def test_a_memorized_prompt_without_neurons_is_judged() -> None:
    """The search may end at its floor with no neuron found; the memory is there all the same."""
    assert failed(measurement(neurons=0, score_after=0.9, score_after_eager=0.9)) == ["memorization_score.baked"]
