"""The heat map and the variants are drawn where there is something to draw, and say in words what they show."""

from __future__ import annotations

from typing import Any

from nemo_edge.localization.groups import Group, Member, Variant
from nemo_edge.report._groupplots import group_plots, variant_plots
from nemo_edge.report.evidence import Evidence
from report.test_evidence import evidence, localization

PROMPTS = ("first", "second", "third")


def group(*prompts: str, variants: tuple[Variant, ...] = (), name: str = "a-cluster") -> Group:
    own = [localization(PROMPTS.index(prompt), prompt, True).refined for prompt in prompts]
    members = [
        Member(prompt=p, variant=False, neurons=2, limit=0.4, score=0.2, overlap=n.jaccard(own[0]))
        for p, n in zip(prompts, own, strict=True)
    ]
    facts: dict[str, Any] = {"inputs": "i", "name": name, "threshold": 0.4, "same": 0, "samples": 10, "seconds": 1.0}
    return Group(members=tuple(members), neurons=own[0], variants=variants, **facts)


def variant(text: str, before: float | None, after: float | None) -> Variant:
    return Variant(prompt="first", text=text, kind="drop", score=0.9, before=before, after=after)


VARIANTS = (variant("fir", 0.8, 0.1), variant("irst", 0.3, 0.2), variant("<b>rst", 0.5, 0.45), variant("none", None, None))


def made(*groups: Group) -> Evidence:
    return evidence(PROMPTS, groups=groups)


def test_a_heat_map_needs_a_group_of_several() -> None:
    assert group_plots(evidence(PROMPTS)) == ()
    assert group_plots(made(group("first"), group("second"))) == ()
    [plot] = group_plots(made(group("first", "second"), group("third", name="other")))
    assert "3 prompts against 2 groups" in plot.label
    assert [row[:3] for row in plot.rows] == [("a-cluster", "2", "2"), ("other", "1", "2")]
    assert plot.rows[0][-1] == "1"


def test_variants_are_drawn_before_and_after() -> None:
    assert variant_plots(made(group("first", "second"))) == ()
    [plot] = variant_plots(made(group("first", variants=VARIANTS)))
    assert "3 variants: above τ 2 before and 1 after" in plot.label
    assert plot.rows[0] == ("fir", "first", "0.8", "0.1")
    assert len(plot.rows) == 3
