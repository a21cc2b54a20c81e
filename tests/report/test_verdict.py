"""The verdict says what leaked, what leaks now and what it costs, in whole sentences."""

from __future__ import annotations

from dataclasses import replace
from math import nan

import pytest

from nemo_edge.bundle.manifest import GateResult
from nemo_edge.recipe.settings import FidelitySettings, GateSettings
from nemo_edge.report._verdict import GATES, above_words, gate_words, kind_words, variant_words, verdict_of
from report.test_evidence import evidence, measurement, mitigation, recipe, replication, shown

NONE = "(0 of 4 a prompt: at most 53 % with 95 % confidence)"


def test_a_leak_that_was_found_before_and_not_after() -> None:
    verdict = verdict_of(evidence(recipe=recipe(fidelity=FidelitySettings(seeds=4))))
    assert verdict.state == "passed"
    assert verdict.headline == (
        "No gate failed, 1 had nothing to judge. None of the 3 examined prompts gives back a known training picture, in any of 12 pictures "
        "(at most 53 % of a prompt's, with 95 % confidence)."
    )
    judged = tuple(gate for gate in evidence().gates if gate.value is not None)
    assert verdict_of(evidence(gates=judged)).headline.startswith("Every gate passed. None of the 3 examined prompts")
    assert verdict.scope == (
        "Measured: the 3 prompts that were given, 4 seeds each. Not measured: other text that people may send, and what somebody who has "
        "the weights can do."
    )
    assert verdict.found.startswith("3 prompts were examined; 3 are memorized")
    assert verdict.before == "Before: 3 of 3 examined prompts gave back a known training picture, in 12 of 12 pictures."
    none = "none of 3 examined prompts gives back a known training picture, in any of 12 pictures"
    assert verdict.after == f"After, baked and masked: {none} {NONE}."
    assert verdict.control.endswith(
        "silenced instead: 3 of 3 examined prompts still give back a known training picture, in 12 of 12 pictures."
    )
    assert "0.02 on average and 0.05 at most" in verdict.cost
    assert verdict.speed.startswith("Speed, a whole picture: baked takes 0.8")


def test_what_still_leaks_is_said_by_variant() -> None:
    measured = measurement()
    baked, masked = measured.variants
    left = (mitigation(after=shown(1)), *baked.mitigations[1:])
    other = (mitigation(after=shown(0, others=2)), *baked.mitigations[1:])
    changed = (baked.model_copy(update={"mitigations": left}), masked.model_copy(update={"mitigations": other}))
    verdict = verdict_of(evidence(measurement=measured.model_copy(update={"variants": changed})))
    one, two = "up to 1 of 4 a prompt: at most 76 %", "up to 2 of 4 a prompt: at most 91 %"
    leaks = "1 of 3 examined prompts still gives back a known training picture, in"
    assert f"After, baked: {leaks} 1 of 12 pictures ({one} with 95 %" in verdict.after
    assert f"After, masked: {leaks} 2 of 12 pictures, 0 of the prompt's own and 2 of another prompt's ({two} with 95 %" in verdict.after
    assert verdict.claim == (
        "1 of the 3 examined prompts gives back a known training picture, in 2 of 12 pictures (at most 91 % of a prompt's, with 95 % "
        "confidence)."
    )
    assert verdict.headline == f"No gate failed, 1 had nothing to judge. {verdict.claim}"


def test_without_training_pictures_the_scores_speak() -> None:
    verdict = verdict_of(evidence(training=False))
    assert verdict.before == "Before: memorization scores up to 0.9, where τ is 0.4."
    assert verdict.after == "After, baked and masked: at most 0.2 of a memory is left."
    assert (verdict.control, verdict.claim) == ("", "")


def test_nothing_memorized_no_times_and_no_diversity() -> None:
    verdict = verdict_of(evidence(memorized=False, latency=None))
    assert verdict.found == "3 prompts were examined. None is memorized, so no neuron was silenced."
    assert verdict.before == f"Before: none of 3 examined prompts gave back a known training picture, in any of 12 pictures {NONE}."
    assert (verdict.control, verdict.speed) == ("", "")
    measured = measurement()
    general = measured.variants[0].general.model_copy(update={"diversity_after": nan})
    variants = tuple(v.model_copy(update={"general": general}) for v in measured.variants)
    assert "diversity" not in verdict_of(evidence(measurement=measured.model_copy(update={"variants": variants}))).cost


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (replication(3, known=False), "Copies were not measured: 3 of 3 examined prompts have no known training picture."),
        (
            replication(16).model_copy(update={"gap": "4 of 16 examined prompts have no known training picture"}),
            "Copies were not measured: 4 of 16 examined prompts have no known training picture.",
        ),
        (GateResult(name="general_drift.baked", limit=0.1, value=0, passed=True), "Copies were not judged: the gate replication is off."),
    ],
)
def test_a_verdict_on_copies_that_nobody_counted_is_no_pass(gate: GateResult, said: str) -> None:
    verdict = verdict_of(evidence(gates=(gate,)))
    assert verdict.state == "unmeasured"
    idle = ", 1 had nothing to judge" if gate.value is None else ""
    assert verdict.headline.startswith(f"{said} No gate failed{idle}.")
    assert verdict_of(evidence(gates=(gate,), passed=False)).state == "failed"


def test_general_prompts_above_the_threshold_are_a_rate() -> None:
    assert above_words(measurement(general_scores=(0.1, 0.41, 0.5, 0.4))) == "2 of 4 general prompts (50 %) lie above τ themselves"
    assert above_words(measurement(general_scores=(0.1, 0.5))) == "1 of 2 general prompts (50 %) lies above τ itself"
    assert above_words(measurement(general_scores=())) == ""


def test_failed_gates_are_counted() -> None:
    failed = GateResult(name="x", limit=0, value=1, passed=False)
    assert verdict_of(evidence(passed=False, gates=(failed,))).judgement == "1 gate failed: this bundle must not be shipped"
    said = verdict_of(replace(evidence(), passed=False)).headline
    assert said.startswith(
        "This bundle must not be shipped. None of the 3 examined prompts gives back"
    )  # what was found is said all the same


def test_every_gate_of_the_recipe_has_its_words() -> None:
    assert set(GATES) == set(GateSettings.model_fields)
    assert gate_words("replication.baked") == GATES["replication"]
    assert gate_words("other") == ""
    assert kind_words("VM").startswith("listed as verbatim")
    assert (kind_words(""), kind_words("RV"), variant_words("baked")) == ("", "labelled RV", "after, baked")
