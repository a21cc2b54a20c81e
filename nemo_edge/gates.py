"""The gates: what a bundle must hold to be shipped, judged from what was measured."""

from __future__ import annotations

__all__ = ["judge"]

from collections.abc import Iterator, Mapping, Sequence, Set
from math import inf, isnan

from nemo_edge.bundle import GateResult
from nemo_edge.groups import Group
from nemo_edge.latency import Latency, Ratio
from nemo_edge.localization import Localization
from nemo_edge.mitigation import Measurement, VariantMeasurement
from nemo_edge.recipe import Recipe


def judge(
    measurement: Measurement,
    localizations: Sequence[Localization],
    recipe: Recipe,
    latency: Latency | None = None,
    groups: Sequence[Group] = (),
) -> tuple[GateResult, ...]:
    """Return every gate that applies, in a fixed order. A value that is not a number fails; without one nothing was there to measure."""
    results, leaky = [], {r.prompt for r in localizations if r.memorized}
    floor = recipe.gates.schedule_floor
    if floor is not False:
        floors = [r.prompt for r in localizations if r.floor]
        results.append(_gate("schedule_floor", floor, len(floors), f"prompts at the floor: {', '.join(floors)}" if floors else ""))
    if recipe.gates.paraphrases is not False and any(group.variants for group in groups):
        results.append(_of_paraphrases(recipe.gates.paraphrases, groups))
    for variant in measurement.variants:
        results += [*_of_memories(variant, measurement, recipe, leaky), *_of_others(variant, recipe), *_of_engine(variant, recipe)]
        results += _of_latency(variant.variant, latency, recipe)
    if measurement.untouched is not None and recipe.engine_tolerance is not False:
        error = measurement.untouched.largest_error
        results.append(_gate("engine_error.untouched", recipe.engine_tolerance, error, "mask of ones against eager"))
    if recipe.identity_tolerance is not False and any(v.variant == "masked" for v in measurement.variants):
        lacking = "needs the baked variant too" if recipe.engine.flavour is None else "needs the engines of ONNX Runtime"
        why = "against the unmitigated engine" if measurement.mask_of_ones is not None else lacking
        results.append(_gate("mask_of_ones", recipe.identity_tolerance, measurement.mask_of_ones, why))
    return tuple(results)


def _of_paraphrases(limit: float, groups: Sequence[Group]) -> GateResult:
    """Whether a small change of words brings a memory back."""
    memorized = sum(len(group.memorized) for group in groups)
    if not memorized:
        return _gate("paraphrases", limit, None, "no variant of a prompt is memorized")
    leaking = [variant.text for group in groups for variant in group.leaking_after]
    return _gate(
        "paraphrases", limit, len(leaking) / memorized, f"of {memorized} variants" + (f": {', '.join(leaking)}" if leaking else "")
    )


def _of_memories(variant: VariantMeasurement, measurement: Measurement, recipe: Recipe, leaky: Set[str]) -> Iterator[GateResult]:
    """What is left of the memories: scores of the prompts that are memorized, and copies of training pictures."""
    name, gates, memorized = variant.variant, recipe.gates, [m for m in variant.mitigations if m.prompt in leaky]
    if gates.memorization_score is not False:
        limit = measurement.threshold if gates.memorization_score is None else gates.memorization_score
        if memorized:
            worst = max(memorized, key=lambda m: inf if isnan(m.score_after) else m.score_after)
            yield _gate(f"memorization_score.{name}", limit, worst.score_after, worst.prompt)
        else:
            yield _gate(f"memorization_score.{name}", limit, None, "no prompt of the list is memorized")
    copied = [m for m in variant.mitigations if m.before.copies]
    if gates.replication is not False and not copied:
        known = any(m.before.copies is not None for m in variant.mitigations)
        why = "no prompt gave back its training picture" if known else "no training picture is known"
        yield _gate(f"replication.{name}", gates.replication, None, why)
    elif gates.replication is not False:
        still = [m.prompt for m in copied if m.after.copies or m.after.others]
        detail = f"of {len(copied)} prompts" + (f": {', '.join(still)}" if still else "")
        yield _gate(f"replication.{name}", gates.replication, len(still) / len(copied), detail)


def _of_others(variant: VariantMeasurement, recipe: Recipe) -> Iterator[GateResult]:
    """What became of everybody else's pictures: drift and diversity."""
    name, gates, general = variant.variant, recipe.gates, variant.general
    if gates.general_drift is not False:
        yield _gate(f"general_drift.{name}", gates.general_drift, general.mean, f"largest {general.largest:.3f}")
    if gates.latent_drift is not False:
        yield _gate(f"latent_drift.{name}", gates.latent_drift, general.latents, "relative ℓ2 distance")
    if gates.diversity_loss is not False:
        before, after = general.diversity_before, general.diversity_after
        if recipe.fidelity.general_seeds < 2 or not before:
            yield _gate(f"diversity_loss.{name}", gates.diversity_loss, None, "needs fidelity.general_seeds = 2 or more")
        else:
            yield _gate(f"diversity_loss.{name}", gates.diversity_loss, 1 - after / before, f"{before:.3f} → {after:.3f}")


def _of_engine(variant: VariantMeasurement, recipe: Recipe) -> Iterator[GateResult]:
    """Whether the engine does what eager does: along the trajectory, and to each memory."""
    name = variant.variant
    if recipe.engine_tolerance is not False:
        yield _gate(f"engine_error.{name}", recipe.engine_tolerance, variant.trajectory.largest_error, "whole trajectory")
    if recipe.agreement_tolerance is not False:
        worst = max(variant.mitigations, key=lambda m: inf if isnan(m.agreement_error) else m.agreement_error)
        yield _gate(f"mitigation_agreement.{name}", recipe.agreement_tolerance, worst.agreement_error, worst.prompt)


def _of_latency(variant: str, latency: Latency | None, recipe: Recipe) -> Iterator[GateResult]:
    """Whether the mitigation costs time, and whether the engine is worth it."""
    gates = recipe.gates
    for name, limit, reference in (("slow_down", gates.slow_down, "unmitigated"), ("eager_ratio", gates.eager_ratio, "eager")):
        if limit is not False:
            found = latency.ratios("unet", variant, reference) if latency else {}
            why = f"the UNet's time beside {reference} was not taken" if latency else "no times were taken: `nemo-edge bench`"
            yield _of_ratios(f"{name}.{variant}", limit, found, why)


def _of_ratios(name: str, limit: float, found: Mapping[str, Ratio], why: str) -> GateResult:
    """The case that is slow beyond doubt, or one that is uncertain, or else the slowest of all."""
    if not found:
        return _gate(name, limit, None, why)
    sure = {case: ratio for case, ratio in found.items() if not ratio.problem(limit)}
    doubts = [f"{case}: {problem}" for case, ratio in found.items() if (problem := ratio.problem(limit))]
    case, ratio = max(sure.items(), key=lambda item: item[1].low, default=("", None))
    if ratio is None or (doubts and ratio.low <= limit):
        return _gate(name, limit, None, doubts[0])
    return _gate(name, limit, ratio.low, f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {case}")


def _gate(name: str, limit: float, value: float | None, detail: str = "") -> GateResult:
    passed = value is None or bool(value <= limit)
    return GateResult(name=name, limit=float(limit), value=None if value is None else float(value), passed=passed, detail=detail)
