"""`index.html`: the evidence as one self-contained page, without a script or any request."""

from __future__ import annotations

__all__ = ["page_html"]

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from nemo_edge.localization.localizer import Localization
from nemo_edge.measure.bounds import at_most
from nemo_edge.measure.latency import Latency
from nemo_edge.measure.mitigation import PromptMitigation, Shown
from nemo_edge.measure.readings import WHOLE
from nemo_edge.report import _numbers as numbers
from nemo_edge.report._commands import commands_of
from nemo_edge.report._engineplots import agreement_plots, case_words, latency_plots
from nemo_edge.report._groupplots import group_plots, variant_plots
from nemo_edge.report._identity import IDENTIFYING, identity_of
from nemo_edge.report._levels import levels_of
from nemo_edge.report._lights import lights_of, time_light
from nemo_edge.report._plots import cost_plots, neuron_plots, score_plots
from nemo_edge.report._record import summarize_policies
from nemo_edge.report._untested import untested
from nemo_edge.report._verdict import above_words, gate_words, kind_words, variant_words, verdict_of
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.thumbnails import Gallery, Views, worst_first
from nemo_edge.system.environment import Machine

_PROMPT_LENGTH = 300
_TABLE_LENGTH = 90
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that no page may hold, or that turn the text after them around."""


@dataclass(frozen=True)
class _Strip:
    """One row of pictures of a prompt: the seeds shown of one engine."""

    which: str
    words: str
    tone: str
    """"good", "bad" or "" where nothing is known of copies."""
    verdict: str
    detail: str
    pictures: Sequence[str]


@dataclass(frozen=True)
class _Card:
    """One prompt with its pictures."""

    number: int
    prompt: str
    kind: str
    found: Localization
    training: str | None
    reading: str
    """How the training picture was read, where there was a choice."""
    seeds: int
    shown: int
    strips: Sequence[_Strip]


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
        "bound": _bound,
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
    cards = [_card(evidence, gallery, place) for place in order.prompts if place in gallery.prompts or place in gallery.training]
    general = [
        {
            "prompt": numbers.clipped(prompt, _PROMPT_LENGTH),
            "views": _ordered(gallery.general[place], evidence, control=False),
            "drift": drift,
        }
        for place, (prompt, drift) in enumerate(zip(evidence.measurement.general_prompts, _drifts(evidence), strict=False))
        if place in gallery.general
    ]
    return {
        "cards": cards,
        "cards_left_out": len(order.prompts) - len(cards),
        "general": general,
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


def _ordered(views: Views, evidence: Evidence, control: bool = True) -> dict[str, Sequence[str]]:
    names = ["before", *(v.variant for v in evidence.measurement.variants), *(["random"] if control else [])]
    return {name: views[name] for name in names if name in views}


def _card(evidence: Evidence, gallery: Gallery, place: int) -> _Card:
    views = _ordered(gallery.prompts.get(place, {}), evidence)
    judged = {v.variant: v.mitigations[place] for v in evidence.measurement.variants}
    first = next(iter(judged.values()))
    return _Card(
        number=place + 1,
        prompt=numbers.clipped(first.prompt, _PROMPT_LENGTH),
        kind=kind_words(first.kind),
        found=evidence.localizations[place],
        training=gallery.training.get(place),
        reading=_chosen(first.before),
        seeds=first.seeds,
        shown=max(map(len, views.values()), default=0),
        strips=[_strip(which, judged.get(which, first), pictures) for which, pictures in views.items()],
    )


def _strip(which: str, judged: PromptMitigation, pictures: Sequence[str]) -> _Strip:
    shown: Shown = getattr(judged, which if which in ("before", "random") else "after")
    score = {"before": judged.score_before, "random": None}.get(which, judged.score_after if judged.neurons else None)
    facts = [f"{'score' if which == 'before' else 'score left'} {numbers.number(score)}"] if score is not None else []
    reading = f" ({_chosen(shown)})" if _chosen(shown) else ""
    facts += [f"distance {numbers.number(shown.distance)}{reading}"] if shown.distance is not None else []
    facts += [f"windowed {numbers.number(shown.local_distance)}"] if shown.local_distance is not None else []
    facts += [f"SSCD {numbers.number(shown.sscd)}"] if shown.sscd is not None else []
    own, others = shown.copies is not None, shown.others or 0
    said = [f"{shown.copies} of {judged.seeds} copies"] if own else []
    said += [f"{others} of another picture" if own else f"{others} of {judged.seeds} copies of another picture"] if others else []
    words = ", ".join(said)
    bound = _bound(shown, judged.seeds)
    words += f" ({bound})" if bound else ""
    words += f", {shown.local_copies} with a part of it" if shown.local_copies else ""
    tone = "bad" if shown.returned else "good" if own and not shown.local_copies else ""
    return _Strip(which, variant_words(which), tone, words, " · ".join(facts), pictures)


def _chosen(shown: Shown) -> str:
    """The reading of the training picture that counted; empty where there was no choice."""
    return "" if shown.reading == WHOLE else shown.reading


def _bound(shown: Shown, seeds: int) -> str:
    """How many of a prompt's pictures are copies at the most; empty where no count is shown, or all are."""
    counted = shown.copies is not None or bool(shown.others)
    return at_most(shown.returned, seeds) if counted and shown.returned < seeds else ""


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
