"""`index.html`: the evidence as one self-contained page, without a script or any request."""

from __future__ import annotations

__all__ = ["page_html"]

import json
import re
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from nemo_edge.measure.latency import Latency
from nemo_edge.report import _numbers as numbers
from nemo_edge.report._cards import PROMPT_LENGTH, SAME, bound_of, card_of, merged
from nemo_edge.report._commands import commands_of
from nemo_edge.report._engineplots import agreement_plots, case_words, latency_plots
from nemo_edge.report._groupplots import group_plots, variant_plots
from nemo_edge.report._identity import IDENTIFYING, identity_of
from nemo_edge.report._levels import levels_of
from nemo_edge.report._lights import lights_of, time_light
from nemo_edge.report._plots import cost_plots, neuron_plots, score_plots
from nemo_edge.report._quantized import kept_of, quantized_of
from nemo_edge.report._record import summarize_policies
from nemo_edge.report._threshold import threshold_pairs
from nemo_edge.report._untested import untested
from nemo_edge.report._verdict import above_words, gate_words, kind_words, variant_words, verdict_of
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.thumbnails import Gallery, worst_first
from nemo_edge.system.environment import Machine

_TABLE_LENGTH = 90
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that no page may hold, or that turn the text after them around."""


def page_html(evidence: Evidence, gallery: Gallery) -> str:
    """Return the page. Prompts and captions are escaped; the same evidence and pictures give the same bytes."""
    environment = Environment(
        loader=PackageLoader("nemo_edge.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "number": numbers.number,
        "clipped": numbers.clipped,
        "count": numbers.count,
        "share": numbers.share,
        "interval": numbers.ratio,
        "moment": numbers.moment,
        "gate_words": gate_words,
        "variant_words": variant_words,
        "bound": bound_of,
        "case_words": case_words,
        "kind_words": kind_words,
    }
    html = environment.get_template("index.html").render(
        evidence=evidence,
        measured=evidence.measurement,
        variants=[v.variant for v in evidence.measurement.variants],
        verdict=verdict_of(evidence),
        levels=levels_of(evidence),
        switches=evidence.attack.switches if evidence.attack else (),
        lights=(*lights_of(evidence), time_light(evidence)),
        above=above_words(evidence.measurement),
        table_length=_TABLE_LENGTH,
        untested=untested(evidence),
        policies=summarize_policies(evidence),
        identity=identity_of(evidence),
        commands=commands_of(evidence),
        quantized=quantized_of(evidence.quantized) if evidence.quantized else (),
        kept_modules=kept_of(evidence.quantized) if evidence.quantized else (),
        facts=_grouped({name: value for name, value in evidence.facts.items() if not name.startswith(("Version · ", *IDENTIFYING))}),
        machine=_machine_rows(evidence.machine),
        recipe=_flat(json.loads(evidence.recipe.model_dump_json())),
        **_shown(evidence, gallery),
        **_plots(evidence),
    )
    return _CONTROL.sub("\ufffd", html)


def _shown(evidence: Evidence, gallery: Gallery) -> dict[str, Any]:
    """The prompts with their pictures, and how many of them had no room."""
    order = worst_first(evidence.measurement)
    cards = [card_of(evidence, gallery, place) for place in order.prompts if place in gallery.prompts or place in gallery.training]
    general: list[dict[str, Any]] = [
        {
            "prompt": numbers.clipped(prompt, PROMPT_LENGTH),
            "views": [(numbers.joined(names), pictures) for names, pictures in merged(gallery.general[place], evidence, control=False)],
            "drift": drift,
        }
        for place, (prompt, drift) in enumerate(zip(evidence.measurement.general_prompts, _drifts(evidence), strict=False))
        if place in gallery.general
    ]
    near = {each.owner for card in cards for strip in card.strips for each in strip.nearest if each.there}
    return {
        "cards": cards,
        "pairs": threshold_pairs(evidence, gallery),
        "near": [(number, gallery.training[number - 1]) for number in sorted(near)],
        "kept": any(m.before.nearest for m in evidence.measurement.variants[0].mitigations),
        "cards_left_out": len(order.prompts) - len(cards),
        "general": general,
        "general_same": SAME if any(" and " in words for item in general for words, _ in item["views"]) else "",
        "general_left_out": len(evidence.measurement.general_prompts) - len(general),
        "general_seeds": max((len(pictures) for views in gallery.general.values() for pictures in views.values()), default=0),
        "rows": [
            (place, evidence.localizations[place], judged)
            for place, judged in enumerate(zip(*(v.mitigations for v in evidence.measurement.variants), strict=True))
        ],
    }


def _drifts(evidence: Evidence) -> list[float]:
    """How much each general prompt's pictures change, on the variant where that is most."""
    return [float(np.max(each)) for each in zip(*(v.general.per_prompt for v in evidence.measurement.variants), strict=True)]


def _plots(evidence: Evidence) -> dict[str, Any]:
    return {
        "scores": score_plots(evidence),
        "neurons": neuron_plots(evidence),
        "groups": (*group_plots(evidence), *variant_plots(evidence)),
        "cost": cost_plots(evidence),
        "errors": agreement_plots(evidence),
        "times": latency_plots(evidence.latency) if evidence.latency else (),
        "time_tables": _time_tables(evidence.latency) if evidence.latency else (),
    }


def _time_tables(latency: Latency) -> list[dict[str, Any]]:
    contenders = {c.name: c for c in latency.contenders}
    return [
        {
            "words": case_words(case),
            "rows": [
                {
                    "timing": timing,
                    "contender": contenders.get(timing.contender),
                    "ratios": {r.reference: r for r in case.ratios if r.contender == timing.contender},
                }
                for timing in case.timings
            ],
        }
        for case in latency.cases
    ]


def _grouped(facts: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Facts by the part of their keys before " · ", which versions and facts without one share."""
    groups: dict[str, list[tuple[str, str]]] = {"": []}
    for key, value in facts.items():
        group, _, name = key.rpartition(" · ")
        together = group in ("", "Version")
        groups.setdefault("" if together else group, []).append((key if together else name, value))
    return groups


def _machine_rows(machine: Machine | None) -> list[tuple[str, str]]:
    if machine is None:
        return []
    memory = f"{machine.memory_gib} GiB, frequency governor {machine.governor or 'not told'}"
    rows = [
        ("System", machine.system),
        ("Python", machine.python),
        ("Processor", f"{machine.cores} cores of {machine.cpu}"),
        ("Memory", memory),
    ]
    rows += [
        ("GPU", f"{gpu.name}, {gpu.memory_mib} MiB, driver {gpu.driver}, compute capability {gpu.compute_capability}")
        for gpu in machine.gpus
    ]
    return rows + [(f"Version · {name}", version) for name, version in machine.versions.items()]


def _flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A recipe as lines of key and value, without what is not set."""
    if isinstance(value, dict):
        return [line for key, each in value.items() for line in _flat(each, f"{prefix}.{key}" if prefix else key)]
    return [] if value is None else [(prefix, value if isinstance(value, str) else json.dumps(value))]
