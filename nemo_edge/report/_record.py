"""`report.json`: what machines need to know of a bundle, in one frozen model with a published schema."""

from __future__ import annotations

__all__ = [
    "AttackSummary",
    "ClusterSummary",
    "CopiesSummary",
    "GroupSummary",
    "LightSummary",
    "LocalizationSummary",
    "PoliciesSummary",
    "Report",
    "record",
    "summarize_policies",
]

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.bundle.triggers import TriggerRates
from nemo_edge.export.quantization.record import Quantized
from nemo_edge.localization.groups import Group, Member, Variant
from nemo_edge.localization.localizer import Localization
from nemo_edge.measure.attacks.base import Level, Rate
from nemo_edge.measure.attacks.campaign import Campaign
from nemo_edge.measure.attacks.switches import Switch
from nemo_edge.measure.bounds import upper_bound
from nemo_edge.measure.latency import Latency
from nemo_edge.measure.mitigation import Measurement, VariantMeasurement
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import AttackSettings
from nemo_edge.report._commands import commands_of
from nemo_edge.report._identity import identity_of
from nemo_edge.report._leaks import leak_of
from nemo_edge.report._lights import Light, lights_of, time_light
from nemo_edge.report._verdict import verdict_of
from nemo_edge.report.evidence import Evidence
from nemo_edge.system.environment import Machine

_NOT_FINITE = ["NaN", "Infinity", "-Infinity"]


class _Schema(GenerateJsonSchema):
    """JSON has no word for NaN and infinity; they are written as strings, and the schema says so."""

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return {"anyOf": [super().float_schema(schema), {"enum": _NOT_FINITE}]}


class LocalizationSummary(BaseModel):
    """What was found for one prompt, without the indices, which are in `localization.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    prompt: str
    memorized: bool
    score: float
    seeds: tuple[int, ...]
    initial: int
    """Neurons of the initial selection."""
    initial_score: float
    refined: int
    """Neurons after refinement."""
    refined_score: float
    per_layer: tuple[int, ...]
    """Refined neurons of each value layer."""
    floor: bool
    theta: float
    k: int
    evaluations: int
    seconds: float | None
    """Wall time of the search, where it is known."""


class CopiesSummary(BaseModel):
    """Copies of training pictures among one variant's pictures, as the verdict tells them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    variant: str
    prompts: int
    """Examined prompts whose pictures were compared with a training picture, be it another prompt's."""
    known: int
    """Of these, how many have a known training picture of their own."""
    leaking: int
    """Of these, how many give back a training picture, their own or another's."""
    pictures: int
    """Their pictures."""
    copies: int
    """Of these, how many are a copy of a training picture."""
    bound: float
    """The most of one prompt's pictures that are copies, of the prompt with most: a one-sided 95 % bound for it alone."""


class LightSummary(BaseModel):
    """One of the page's lights: what the gates on one question come to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    state: Literal["good", "bad", "open"]
    """Open: nothing was measured that could answer it, or no gate asks."""
    word: str
    figure: str


class GroupSummary(BaseModel):
    """Prompts that have one set of neurons, without the indices, which are in `groups.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    members: tuple[Member, ...]
    neurons: int
    per_layer: tuple[int, ...]
    """Neurons of each value layer."""
    variants: tuple[Variant, ...]


class ClusterSummary(BaseModel):
    """One cluster of memorized prompts that a server can be asked to silence alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    neurons: int
    prompts: int
    """Memorized prompts that the trigger knows of it; 0 where there is no trigger."""


class PoliciesSummary(BaseModel):
    """What a server can be asked to silence, without indices and embeddings, which are in `policies.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    version: str
    clusters: tuple[ClusterSummary, ...]
    threshold: float | None
    """The least cosine to a memorized prompt at which `triggered` silences its cluster's neurons; None where there is no trigger."""
    rates: TriggerRates | None


class AttackSummary(BaseModel):
    """What came back under attack, as the verdict tells it; the pictures and texts one by one are in attack.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    settings: AttackSettings
    levels: tuple[Level, ...]
    rates: tuple[Rate, ...]
    switches: tuple[Switch, ...]


class Report(BaseModel):
    """The whole report for machines. NaN and infinity are the strings "NaN", "Infinity" and "-Infinity"."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", title="nemo-edge report")

    schema_version: Literal[6] = 6
    name: str
    family: str
    passed: bool
    """Whether no gate failed."""
    verdict: Literal["passed", "failed", "unmeasured"]
    """Unmeasured: no gate failed, but whether pictures are copies is not known of enough prompts."""
    headline: str
    """What the gates come to, and the claim."""
    claim: str
    """What was found in how many pictures, by each level that was measured, with its bound; empty where no copies were counted."""
    lights: tuple[LightSummary, ...]
    """Memories, other pictures, engine, and time."""
    copies: tuple[CopiesSummary, ...]
    """One for each variant."""
    gates: tuple[GateResult, ...]
    measurement: Measurement
    localizations: tuple[LocalizationSummary, ...]
    groups: tuple[GroupSummary, ...] = ()
    policies: PoliciesSummary | None = None
    attack: AttackSummary | None = None
    """None where it was not attacked with the neurons that it has now."""
    quantization: Quantized | None = None
    """None where the engines compute in the type of the files."""
    latency: Latency | None
    machine: Machine | None
    date: str | None
    recipe: Recipe
    identity: dict[str, str]
    """What tells this bundle from another, as the page has it: makers, model, hashes, versions, machine, time."""
    commands: tuple[str, ...]
    """Lines for a shell: verify, build again, attack."""
    facts: dict[str, str]

    @classmethod
    def model_json_schema(
        cls,
        by_alias: bool | None = True,
        ref_template: str = DEFAULT_REF_TEMPLATE,
        schema_generator: type[GenerateJsonSchema] = _Schema,
        mode: JsonSchemaMode = "validation",
        **options: Any,
    ) -> dict[str, Any]:
        """Return the schema that `docs/report.schema.json` publishes."""
        return super().model_json_schema(by_alias, ref_template, schema_generator, mode, **options)


def record(evidence: Evidence) -> Report:
    """Return the report of a bundle as a value."""
    verdict = verdict_of(evidence)
    return Report(
        name=evidence.name,
        family=evidence.family,
        passed=evidence.passed,
        verdict=verdict.state,
        headline=verdict.headline,
        claim=verdict.claim,
        lights=tuple(_light(light) for light in (*lights_of(evidence), time_light(evidence))),
        copies=tuple(_copies(variant) for variant in evidence.measurement.variants),
        gates=evidence.gates,
        measurement=evidence.measurement,
        localizations=tuple(_summary(found) for found in evidence.localizations),
        groups=tuple(_group(group) for group in evidence.groups),
        policies=summarize_policies(evidence),
        attack=_attack(evidence.attack) if evidence.attack else None,
        quantization=evidence.quantized,
        latency=evidence.latency,
        machine=evidence.machine,
        date=evidence.date,
        recipe=evidence.recipe,
        identity={row.name: row.value for row in identity_of(evidence)},
        commands=tuple(command.line for command in commands_of(evidence)),
        facts=evidence.facts,
    )


def summarize_policies(evidence: Evidence) -> PoliciesSummary | None:
    """Return the policies of a bundle in short; None where it has none."""
    if evidence.policies is None:
        return None
    clusters, trigger = evidence.policies.clusters, evidence.policies.trigger
    known = trigger.known if trigger else {}
    return PoliciesSummary(
        version=evidence.policies.version,
        clusters=tuple(ClusterSummary(name=name, neurons=len(own), prompts=known.get(name, 0)) for name, own in clusters.items()),
        threshold=trigger.threshold if trigger else None,
        rates=trigger.rates if trigger else None,
    )


def _attack(found: Campaign) -> AttackSummary:
    return AttackSummary(settings=found.settings, levels=found.levels, rates=found.rates, switches=found.switches)


def _light(light: Light) -> LightSummary:
    return LightSummary(name=light.name, state=light.state, word=light.word, figure=light.figure)


def _copies(variant: VariantMeasurement) -> CopiesSummary:
    leak = leak_of(variant.mitigations, "after")
    return CopiesSummary(
        variant=variant.variant,
        prompts=leak.prompts,
        known=leak.known,
        leaking=leak.leaking,
        pictures=leak.pictures,
        copies=leak.copies,
        bound=upper_bound(leak.most, leak.seeds),
    )


def _group(group: Group) -> GroupSummary:
    return GroupSummary(
        name=group.name, members=group.members, neurons=len(group.neurons), per_layer=group.neurons.counts, variants=group.variants
    )


def _summary(found: Localization) -> LocalizationSummary:
    kept = set(LocalizationSummary.model_fields) - {"initial", "refined", "per_layer"}
    return LocalizationSummary(
        **{name: getattr(found, name) for name in kept},
        initial=len(found.initial),
        refined=len(found.refined),
        per_layer=found.refined.counts,
    )
