"""What an audit's answers come to: counts with their bounds, who gave a picture back, and sentences that claim no level."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from nemo_edge.measure.attacks.base import Attempt, rates
from nemo_edge.serving.audit.base import NO_PROOF, PAIRS, Asked, Audit, AuditSettings, Begun, Giver, Other, merged, part_of
from nemo_edge.serving.remotes.base import Identity
from nemo_edge.system.environment import machine

BEGUN = Begun(inputs="i", date="", size=(8, 8), seeded=True, copy_threshold=0.3, copy_pairs=16, alike_threshold=None, alike_pairs=None)


def asked(prompt: str, way: Any, copied: list[bool], text: str = "", picture: str = "p", **more: Any) -> Asked:
    attempts = tuple(Attempt(steps=0, seed=i, text=text or prompt, distance=0.1 if c else 0.6, copied=c) for i, c in enumerate(copied))
    given = {"group": "memories", **more}
    return Asked(inputs="i", attack="text", way=way, prompt=prompt, picture=picture, attempts=attempts, text=text or prompt, **given)


ANSWERS = (
    asked("a", "prompt", [True, False]),
    asked("b", "prompt", [False, False]),
    asked("a", "paraphrases", [True, True], "A"),
    asked("a", "paraphrases", [False, False], "a!"),
    asked("b", "paraphrases", [False, True], "B"),
    asked("c", "prompt", [], refusal="answered 400: no"),
)


def made(answers: tuple[Asked, ...] = ANSWERS, begun: Begun = BEGUN, **more: Any) -> Audit:
    attacked = merged(answers)
    parts = [part_of([e for e in attacked if bool(e.picture) is known and e.group == "memories"]) for known in (True, False)]
    fields = {"others": 0, "control": None, "settings": AuditSettings(), **more}
    return Audit(
        begun=begun,
        remote=Identity(kind="command", address="draw"),
        prompts_hash="",
        general_hash="",
        vocabulary="",
        machine=machine(),
        known=parts[0],
        unknown=parts[1],
        refused=sum(not a.attempts for a in answers),
        asked=answers,
        **fields,
    )


def test_texts_of_a_prompt_and_way_are_put_together_and_refusals_left_out() -> None:
    found = merged(ANSWERS)
    assert [(each.prompt, each.way, len(each.attempts)) for each in found] == [
        ("a", "prompt", 2),
        ("b", "prompt", 2),
        ("a", "paraphrases", 4),
        ("b", "paraphrases", 2),
    ]
    assert [attempt.text for attempt in found[2].attempts] == ["A", "A", "a!", "a!"]


def test_prompts_are_counted_as_they_are_and_by_any_way() -> None:
    part = part_of(merged(ANSWERS))
    assert part is not None
    assert [(rate.way, rate.count.returned, rate.count.of, rate.copies, rate.drawn) for rate in part.rates] == [
        ("prompt", 1, 2, 1, 4),
        ("paraphrases", 2, 2, 3, 6),
    ]
    assert (part.total.returned, part.total.of) == (2, 2)
    assert part_of([]) is None


def test_who_gave_a_picture_back_is_listed() -> None:
    assert made().givers == (Giver("a", (1, 2), (2, 4), 0.1), Giver("b", (0, 2), (1, 2), 0.1))
    assert made(ANSWERS[1:2]).givers == ()
    assert made().returned == 2


def test_the_sentences_say_counts_with_bounds_and_that_nothing_found_is_no_proof() -> None:
    assert made().verdicts == (
        "1 of 2 prompts give back their training picture (at least 2 %, 95 % confidence)",
        "with paraphrases too it is 2 of 2 (at least 22 %)",
        "1 of 6 texts were refused: answered 400: no",
        "of 1 of 3 prompts nothing was drawn, so that nothing is known of them",
        "what is a copy is told by the nearest of 16 unrelated pairs, and a prompt had up to 6 tries, so that some may be chance: give "
        "more prompts with --general, or --threshold",
        NO_PROOF,
    )
    enough = BEGUN.model_copy(update={"copy_pairs": PAIRS})
    assert made(ANSWERS[1:2], enough).verdicts == (
        "0 of 1 prompts give back their training picture (at most 95 %, 95 % confidence)",
        NO_PROOF,
    )
    assert "no level of an attacker is claimed" in NO_PROOF


def test_a_prompt_without_a_picture_is_said_to_be_judged_otherwise() -> None:
    (first, *_) = made((asked("a", "prompt", [True, True], picture=""),)).verdicts
    said = "1 of 1 prompts without a known picture draw alike pictures from most seeds, as of a memory"
    assert first == f"{said} (at least 5 %, 95 % confidence)"


def test_controls_copies_of_others_and_a_missing_seed_are_said() -> None:
    control = rates(merged((asked("g", "prompt", [False], group="never seen"), asked("h", "prompt", [True], group="never seen"))))[0]
    said = made(control=control, others=3, begun=BEGUN.model_copy(update={"seeded": False})).verdicts
    assert "3 pictures are copies of another listed prompt's training picture" in said
    assert "of prompts that are not memorized 1 of 2 read as copies (at least 2 %)" in said
    assert "it draws alike pictures whatever the seed: each text was drawn once" in said


@pytest.mark.parametrize(("most", "passed"), [(None, None), (1, False), (2, True)])
def test_it_fails_only_where_a_limit_is_given(most: int | None, passed: bool | None) -> None:
    assert made(ANSWERS[:-1], settings=AuditSettings(most=most)).passed is passed


def test_what_was_not_answered_passes_nothing() -> None:
    most = AuditSettings(most=0)
    refused = (asked("c", "prompt", [], refusal="answered 400: no"), asked("d", "prompt", [], refusal="answered 400: no"))
    none = made(refused, settings=most)
    assert (none.known, none.returned, none.unanswered, none.passed) == (None, 0, ("c", "d"), None)
    assert made((*refused, asked("c", "paraphrases", [False], "C")), settings=most).unanswered == ("d",)
    assert made((*refused, ANSWERS[0]), settings=most).passed is False, "whatever the others would have given"


def test_a_prompt_that_gives_another_s_picture_back_is_counted() -> None:
    """As DESIGN.md has it: own or another's."""
    others = tuple(Other(seed=seed, prompt="a", picture="q", distance=0.2) for seed in range(2))
    answers = (asked("b", "prompt", [False] * 3, others=others), asked("c", "prompt", [False]))
    found = made(answers, others=2, settings=AuditSettings(most=0))
    assert (found.returned, found.passed) == (1, False)
    assert found.givers == (Giver("b", (2, 3), (0, 0), 0.2),)
    assert found.verdicts[0].startswith("1 of 2 prompts give back a training picture, their own or another's (at least")
    unknown = made((asked("b", "prompt", [False] * 3, picture="", others=others),), others=2)
    assert "as of a memory or another's training picture" in unknown.verdicts[0]
    assert unknown.returned == 1


def test_what_thresholds_of_few_pairs_and_memories_among_them_are_worth_is_said() -> None:
    begun = BEGUN.model_copy(update={"alike_threshold": 0.2, "alike_pairs": 120, "copy_pairs": None, "memorized": ("x", "y")})
    said = made((asked("b", "prompt", [False] * 3, picture=""),), begun).verdicts
    assert "said not to be memorized, and drawing a listed training picture (no threshold comes from them): 'x', 'y'" in said
    assert any(each.startswith("what is alike is told by the nearest of 120 unrelated pairs, and a prompt had up to 3") for each in said)
    assert not any(each.startswith("what is") for each in made((asked("b", "prompt", [False]),), begun).verdicts), (
        "a given one has no pairs"
    )


def test_single_pictures_that_were_refused_are_said() -> None:
    said = made((asked("a", "prompt", [True], refused_seeds=(1, 2), refusal="answered 400: no"),)).verdicts
    assert "of texts that were drawn 2 pictures were refused: answered 400: no" in said


def test_it_reads_back() -> None:
    other = Other(seed=0, prompt="b", picture="q", distance=0.1)
    found = made((*ANSWERS, asked("d", "prompt", [False], others=(other,))), others=1)
    assert Audit.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize(
    "given", [{"text": ["greedy search"]}, {"text": ["paraphrases", "paraphrases"]}, {"seeds": 0}, {"threshold": 0}, {"most": -1}, {"x": 1}]
)
def test_settings_that_cannot_be_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AuditSettings.model_validate(given)


def test_texts_are_made_as_an_attack_makes_them() -> None:
    changes = AuditSettings(variants=3, words=2, seed=5).changes
    assert (changes.variants, changes.words, changes.seed) == (3, 2, 5)
