"""Three lights and the time: each follows its gates, and says so by a mark and a word, not by colour alone."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest
from measure.attacks.test_base import level_of

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.recipe.settings import GateSettings
from nemo_edge.report._lights import ASKED, MARKS, lights_of, time_light
from nemo_edge.report._page import page_html
from nemo_edge.report.evidence import Evidence
from nemo_edge.report.thumbnails import Gallery
from report.test_evidence import evidence, mitigation, replication, shown
from report.test_levels import campaign

NAMES = ("replication.baked", "general_drift.baked", "engine_error.baked", "slow_down.baked")


def judged(*failed: str, unmeasured: tuple[str, ...] = ()) -> Evidence:
    gates = tuple(
        GateResult(name=name, limit=0.5, value=None if name in unmeasured else 1.0 if name in failed else 0.1, passed=name not in failed)
        for name in NAMES
    )
    return evidence(gates=gates, passed=not failed)


def states(made: Evidence) -> list[str]:
    return [light.state for light in (*lights_of(made), time_light(made))]


def test_every_gate_has_its_light() -> None:
    asked = [name for names in ASKED.values() for name in names]
    assert sorted(asked) == sorted(GateSettings.model_fields)


@pytest.mark.parametrize("place", range(4))
def test_a_failed_gate_turns_its_light_and_no_other(place: int) -> None:
    expected = ["good"] * 4
    expected[place] = "bad"
    assert states(judged(NAMES[place])) == expected
    expected[place] = "open"
    assert states(judged(unmeasured=(NAMES[place],))) == expected


def test_copies_that_no_gate_counts_turn_the_light_too() -> None:
    made = judged()
    leaky = tuple(v.model_copy(update={"mitigations": (mitigation(after=shown(1)), *v.mitigations[1:])}) for v in made.measurement.variants)
    lights = lights_of(replace(made, measurement=made.measurement.model_copy(update={"variants": leaky})))
    assert (lights[0].state, lights[0].word) == ("bad", "not held back")
    assert lights[0].figure == "1 of 12 pictures are copies, before 12"


def test_what_was_not_measured_has_no_light() -> None:
    memories = lights_of(evidence(training=False, gates=(replication(3, known=False),)))[0]
    assert (memories.state, memories.word) == ("open", "not measured")
    assert memories.figure == "score left 0.2 at most, τ is 0.4"
    assert time_light(evidence(latency=None)).word == "not measured"
    assert time_light(evidence()).word == "not judged"  # times were taken, and the gate had nothing to judge
    assert states(evidence(gates=())) == ["open"] * 4
    assert {light.word for light in lights_of(evidence(gates=()))} == {"not judged"}  # it was measured, and no gate asks


def test_text_that_brings_a_memory_back_turns_it_and_an_embedding_is_named() -> None:
    text = evidence(attack=campaign(level_of(20, 1, attack="text")), gates=judged().gates)
    assert lights_of(text)[0].state == "bad"
    weights = lights_of(evidence(attack=campaign(level_of(20, 20)), gates=judged().gates))[0]
    assert weights.state == "good"
    assert weights.figure.endswith("an owner of the weights still gets 20 of 20 back")


def test_a_failed_gate_is_named_with_its_value_beside_another_figure() -> None:
    _, others, engine = lights_of(judged("engine_error.baked"))
    assert engine.figure.startswith("engine_error.baked 1, limit 0.5; largest error")
    assert others.figure.startswith("2 general prompts")


def test_a_quiet_time_does_not_stand_for_a_noisy_one() -> None:
    made = judged()
    noisy = GateResult(name="slow_down.masked", limit=1.05, value=None, passed=True)
    assert time_light(made).state == "good"
    assert time_light(replace(made, gates=(*made.gates, noisy))).state == "open"


def test_what_is_no_number_is_worst() -> None:
    made = judged()
    first, second = made.measurement.variants
    broken = second.model_copy(update={"general": second.general.model_copy(update={"mean": nan})})
    light = lights_of(replace(made, measurement=made.measurement.model_copy(update={"variants": (first, broken)})))[1]
    assert "not a number" in light.figure


def test_the_page_says_each_by_mark_and_word() -> None:
    made = judged("engine_error.baked", unmeasured=("slow_down.baked",))
    page = page_html(made, Gallery({}, {}, {}))
    for light in (*lights_of(made), time_light(made)):
        assert (
            f'<li class="{light.state}{" apart" if light.name == "Time" else ""}"><span class="mark" aria-hidden="true">{light.mark}</span>'
            in page
        )
        assert f'<b>{light.name}:</b> <span class="word">{light.word}</span>' in page
    assert len(set(MARKS.values())) == len(MARKS)


def test_figures_name_their_limits() -> None:
    _, others, engine = lights_of(judged())
    assert others.figure == "2 general prompts change by 0.02 on average (1 − SSIM), limit 0.5"
    assert engine.figure == "largest error 4e-6 of the largest value, limit 0.5"
    assert time_light(judged()).figure.startswith("a whole picture: 0.8")
