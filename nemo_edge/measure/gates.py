"""The gates: what a bundle must hold to be shipped, judged from what was measured."""

from __future__ import annotations

__all__ = ["judge"]

from collections.abc import Iterator, Mapping, Sequence, Set
from math import inf, isnan

from nemo_edge.bundle.manifest import COPIES, GateResult
from nemo_edge.localization.groups import Group
from nemo_edge.localization.localizer import Localization
from nemo_edge.measure.attacks.campaign import Campaign
from nemo_edge.measure.bounds import at_most
from nemo_edge.measure.fidelity import Agreement
from nemo_edge.measure.latency import Latency, Ratio
from nemo_edge.measure.mitigation import Measurement, VariantMeasurement
from nemo_edge.recipe.recipe import Recipe

_MOST_UNKNOWN = 0.2
"""Largest share of the examined prompts without a known training picture at which copies count as measured."""


def judge(
    measurement: Measurement,
    localizations: Sequence[Localization],
    recipe: Recipe,
    latency: Latency | None = None,
    groups: Sequence[Group] = (),
    attack: Campaign | None = None,
) -> tuple[GateResult, ...]:
    """Return every gate that applies, in a fixed order. A value that is not a number fails; without one nothing was there to measure."""
    results, leaky = [], {r.prompt for r in localizations if r.memorized}
    floor = recipe.gates.schedule_floor
    if floor is not False:
        floors = [r.prompt for r in localizations if r.floor]
        results.append(_gate("schedule_floor", floor, len(floors), f"prompts at the floor: {', '.join(floors)}" if floors else ""))
    if recipe.gates.paraphrases is not False and (recipe.localization.paraphrases or any(group.variants for group in groups)):
        results.append(_of_paraphrases(recipe.gates.paraphrases, groups))
    results += _of_attack(recipe, attack)
    for variant in measurement.variants:
        results += [*_of_memories(variant, measurement, recipe, leaky), *_of_others(variant, recipe), *_of_engine(variant, recipe)]
        results += _of_latency(variant.variant, latency, recipe)
    if measurement.untouched is not None and recipe.engine_tolerance is not False:
        error, how = _error(measurement.untouched, recipe)
        general = "" if recipe.quantization is None else ", on general prompts"
        results.append(_gate("engine_error.untouched", recipe.engine_tolerance, error, f"mask of ones against eager, {how}" + general))
    if recipe.identity_tolerance is not False and any(v.variant == "masked" for v in measurement.variants):
        lacking = "needs the baked variant too" if recipe.engine.flavour is None else "needs engines of the ONNX files"
        why = "against the unmitigated engine" if measurement.mask_of_ones is not None else lacking
        results.append(_gate("mask_of_ones", recipe.identity_tolerance, measurement.mask_of_ones, why))
    return tuple(results)


def _of_paraphrases(limit: float, groups: Sequence[Group]) -> GateResult:
    """Whether a small change of words brings a memory back."""
    memorized = sum(len(group.memorized) for group in groups)
    if not memorized:
        why = "no variant of a prompt is memorized" if groups else "no variant was tried with these neurons"
        return _gate("paraphrases", limit, None, why)
    leaking = [variant.text for group in groups for variant in group.leaking_after]
    return _gate(
        "paraphrases", limit, len(leaking) / memorized, f"of {memorized} variants" + (f": {', '.join(leaking)}" if leaking else "")
    )


def _of_attack(recipe: Recipe, attack: Campaign | None) -> Iterator[GateResult]:
    """Which memories come back under attack; of one that is too weak nothing is claimed."""
    limits = {"text": recipe.gates.attack_text, "embedding": recipe.gates.attack_embedding}
    if recipe.attack is not None and attack is None:
        wanted = {"text": recipe.attack.text, "embedding": recipe.attack.starts}
        for kind, limit in limits.items():
            if limit is not False and wanted[kind]:
                yield _gate(f"attack_{kind}", limit, None, "not attacked since its neurons were changed")
    for level in attack.levels if attack else ():
        name, limit, found = f"attack_{level.attack}", limits[level.attack], level.memories
        if limit is not False:
            weak = not level.strong and found.returned <= limit * found.of
            value = None if weak else found.returned / found.of
            yield _gate(name, limit, value, level.verdict, f"the attack with {level.attack} is too weak to tell" if weak else "")


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
    if gates.replication is not False:
        yield _of_copies(variant, gates.replication)


def _of_copies(variant: VariantMeasurement, limit: float) -> GateResult:
    """Which prompts give back a training picture, their own or another's, and what the number of pictures says of those that do not."""
    name, judged = f"{COPIES}.{variant.variant}", variant.mitigations
    compared, unknown = [m for m in judged if m.after.compared], sum(m.after.copies is None for m in judged)
    without = f"{unknown} of {len(judged)} examined prompts {'has' if unknown == 1 else 'have'} no known training picture"
    gap = without if unknown > _MOST_UNKNOWN * len(judged) else ""
    if not compared:
        return _gate(name, limit, None, "no training picture is known", gap)
    leaking, fewest = [m for m in compared if m.after.returned], min(m.seeds for m in compared)
    said = [", ".join(m.prompt + (" (new)" if m.new else "") for m in leaking)] if leaking else []
    parts = [m for m in compared if m.after.local_copies]
    said += [f"parts of a training picture in those of {len(parts)}, which no gate counts"] if parts else []
    said += [f"0 of {fewest} means {at_most(0, fewest)} of a prompt's pictures"] + ([without] if unknown else [])
    detail = f"of {len(compared)} examined prompts, {fewest} pictures each: {'; '.join(said)}"
    return _gate(name, limit, len(leaking) / len(compared), detail, gap)


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
        yield _gate(f"engine_error.{name}", recipe.engine_tolerance, *_error(variant.trajectory, recipe))
    if recipe.agreement_tolerance is not False:
        worst = max(variant.mitigations, key=lambda m: inf if isnan(m.agreement_error) else m.agreement_error)
        yield _gate(f"mitigation_agreement.{name}", recipe.agreement_tolerance, worst.agreement_error, worst.prompt)


def _error(agreement: Agreement, recipe: Recipe) -> tuple[float, str]:
    """The error that is judged: of a quantized engine that of each step alone, since its own way soon leaves eager's."""
    if recipe.quantization is None:
        return agreement.largest_error, "whole trajectory"
    return agreement.forced_error, "each step alone"


def _of_latency(variant: str, latency: Latency | None, recipe: Recipe) -> Iterator[GateResult]:
    """Whether the mitigation costs time, and whether the engine is worth it."""
    gates = recipe.gates
    for name, limit, reference in (("slow_down", gates.slow_down, "unmitigated"), ("eager_ratio", gates.eager_ratio, "eager")):
        if limit is not False:
            found = latency.ratios("unet", variant, reference) if latency else {}
            noise = latency.noise("unet", variant, reference) if latency else {}
            why = f"the UNet's time beside {reference} was not taken" if latency else "no times were taken: `nemo-edge bench`"
            yield _of_ratios(f"{name}.{variant}", limit, found, noise, why)


def _of_ratios(name: str, limit: float, found: Mapping[str, Ratio], noise: Mapping[str, str], why: str) -> GateResult:
    """The case that is slow beyond doubt, or one that is uncertain or noisy, or else the slowest of all."""
    if not found:
        return _gate(name, limit, None, why)
    problems = {case: noise.get(case) or ratio.problem(limit) for case, ratio in found.items()}
    sure = {case: ratio for case, ratio in found.items() if not problems[case]}
    doubts = [f"{case}: {problem}" for case, problem in problems.items() if problem]
    case, ratio = max(sure.items(), key=lambda item: item[1].low, default=("", None))
    if ratio is None or (doubts and ratio.low <= limit):
        return _gate(name, limit, None, doubts[0])
    return _gate(name, limit, ratio.low, f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f}), {case}")


def _gate(name: str, limit: float, value: float | None, detail: str = "", gap: str = "") -> GateResult:
    passed = value is None or bool(value <= limit)
    number = None if value is None else float(value)
    return GateResult(name=name, limit=float(limit), value=number, passed=passed, detail=detail, gap=gap)
