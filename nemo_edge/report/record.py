"""`report.json`: what machines need to know of a bundle, in one frozen model with a published schema."""

from __future__ import annotations

__all__ = ["GroupSummary", "LocalizationSummary", "Report", "record"]

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import DEFAULT_REF_TEMPLATE, GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import core_schema

from nemo_edge.bundle import GateResult
from nemo_edge.environment import Machine
from nemo_edge.groups import Group, Member, Variant
from nemo_edge.latency import Latency
from nemo_edge.localization import Localization
from nemo_edge.mitigation import Measurement
from nemo_edge.recipe import Recipe
from nemo_edge.report.evidence import Evidence

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
    seconds: float


class GroupSummary(BaseModel):
    """Prompts that have one set of neurons, without the indices, which are in `groups.jsonl`."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    name: str
    members: tuple[Member, ...]
    neurons: int
    per_layer: tuple[int, ...]
    """Neurons of each value layer."""
    variants: tuple[Variant, ...]


class Report(BaseModel):
    """The whole report for machines. NaN and infinity are the strings "NaN", "Infinity" and "-Infinity"."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings", title="nemo-edge report")

    schema_version: Literal[2] = 2
    name: str
    family: str
    passed: bool
    gates: tuple[GateResult, ...]
    measurement: Measurement
    localizations: tuple[LocalizationSummary, ...]
    groups: tuple[GroupSummary, ...] = ()
    latency: Latency | None
    machine: Machine | None
    date: str | None
    recipe: Recipe
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
    return Report(
        name=evidence.name,
        family=evidence.family,
        passed=evidence.passed,
        gates=evidence.gates,
        measurement=evidence.measurement,
        localizations=tuple(_summary(found) for found in evidence.localizations),
        groups=tuple(_group(group) for group in evidence.groups),
        latency=evidence.latency,
        machine=evidence.machine,
        date=evidence.date,
        recipe=evidence.recipe,
        facts=evidence.facts,
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
