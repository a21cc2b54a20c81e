"""What is protected against whom: each level with its figure, its controls, or that it was not measured."""

from __future__ import annotations

from measure.attacks.test_base import level_of

from nemo_edge.measure.attacks.base import Level
from nemo_edge.measure.attacks.campaign import Campaign
from nemo_edge.measure.attacks.switches import Switch
from nemo_edge.recipe.settings import AttackSettings
from nemo_edge.report._levels import levels_of
from nemo_edge.report._page import page_html
from nemo_edge.report._untested import untested
from nemo_edge.report._verdict import verdict_of
from nemo_edge.report.thumbnails import Gallery
from report.test_evidence import evidence


def campaign(*levels: Level) -> Campaign:
    return Campaign(
        inputs="",
        source="out",
        checkpoint={},
        neurons=1,
        neurons_hash="",
        engine="onnxruntime, baked",
        settings=AttackSettings(),
        sampling={},
        versions={},
        copy_threshold=0.3,
        threshold_pairs=None,
        levels=levels,
        rates=(),
        switches=(Switch(name="the policy off", who="whoever may send it"),),
        attacked=(),
    )


BOTH = campaign(level_of(20, 0, attack="text"), level_of(20, 20))


def test_what_was_not_attacked_is_not_measured() -> None:
    given, text, embedding = levels_of(evidence())
    assert [level.state for level in (text, embedding)] == ["open", "open"]
    assert text.figure == embedding.figure == "not measured"
    assert given.figure.endswith("training picture back")


def test_each_level_has_its_figure_and_both_controls() -> None:
    _, text, embedding = levels_of(evidence(attack=BOTH))
    assert (text.state, text.figure) == ("held", "0 of 20 attacked memories come back (at most 14 %)")
    assert (embedding.state, embedding.figure) == ("broken", "20 of 20 attacked memories come back (at least 86 %)")
    assert "with nothing silenced 20 of 20 come back; of pictures that the model never saw 0 of 1" in embedding.detail


def test_of_an_attack_that_is_too_weak_nothing_is_claimed_unless_it_succeeds() -> None:
    weak, still = (levels_of(evidence(attack=campaign(level_of(10, back))))[2] for back in (0, 1))
    assert (weak.state, weak.figure) == ("open", "attack too weak: nothing is claimed")
    assert still.state == "broken"


def test_the_headline_has_the_figure_of_each_level() -> None:
    said = "; text that anyone can type brings back 0 of 20 attacked memories (at most 14 %); an optimised embedding brings back 20 of 20 ("
    assert said in verdict_of(evidence(attack=BOTH)).headline
    assert "an optimised embedding is too weak to tell" in verdict_of(evidence(attack=campaign(level_of(10, 0)))).headline
    assert "; text that" not in verdict_of(evidence()).headline


def test_the_page_opens_with_the_levels_and_the_switches() -> None:
    page = page_html(evidence(attack=BOTH), Gallery({}, {}, {}))
    first = page[: page.index('class="lead"')]
    for words in ("An optimised embedding", "20 of 20 attacked memories come back", "Text that an API user can send", "the policy off"):
        assert words in first, words


def test_what_was_attacked_is_no_longer_untested() -> None:
    assert "Text that is searched for" in " ".join(untested(evidence()))
    said = " ".join(untested(evidence(attack=BOTH)))
    assert "Text that is searched for" not in said
    assert "train the memory back" in said
