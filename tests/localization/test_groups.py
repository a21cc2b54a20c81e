"""Groups of prompts have one set, variants that bring a memory back join them, and an interrupted list goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from reference import blocked_score

from nemo_edge.localization.groups import Group, Groups, all_neurons, clusters_of, groups_in, read_groups
from nemo_edge.localization.localizer import Localization, Localizer, union
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.system.errors import InputError

SAMPLES, THRESHOLD = 4, 0.7
PROMPTS = ("trolleybus broccoli carnival", "rowboat kimono festival", "a mushroom")


@pytest.fixture(scope="module")
def localizer(demo_localizer: Localizer) -> Localizer:
    return demo_localizer


@pytest.fixture(scope="module")
def found(localizer: Localizer) -> list[Localization]:
    return localizer.localize_all(PROMPTS)


@pytest.fixture(scope="module")
def robust(localizer: Localizer, found: list[Localization]) -> Group:
    return Groups(localizer, 6).make("trolley", found[:1])


def left(localizer: Localizer, prompt: str, lists: Sequence[Sequence[int]]) -> float:
    seeds = localizer.above(localizer.examine(prompt).scores_S)
    return blocked_score(localizer.checkpoint, prompt, [list(chosen) for chosen in lists], SAMPLES, list(seeds))


def test_variants_that_bring_the_memory_back_join(localizer: Localizer, found: list[Localization], robust: Group) -> None:
    assert robust.leaking_before
    assert not robust.leaking_after
    joined = [member for member in robust.members if member.variant]
    assert joined
    worst = max(robust.leaking_before, key=lambda v: v.before or 0)
    assert joined[0].prompt == worst.text
    assert robust.neurons != found[0].refined
    for variant in robust.variants:
        assert variant.prompt == PROMPTS[0]
        assert (variant.after is None) == (variant.score <= THRESHOLD)
        if variant.after is not None and variant.before is not None:
            assert variant.before == pytest.approx(left(localizer, variant.text, found[0].refined.indices), abs=1e-5)
            assert variant.after == pytest.approx(left(localizer, variant.text, robust.neurons.indices), abs=1e-5)


def test_variants_that_are_read_as_the_prompt_are_counted_and_not_run(robust: Group) -> None:
    assert robust.same > 0
    assert all(variant.kind != "case" for variant in robust.variants)


def test_a_group_without_variants_says_what_its_set_does_to_each_prompt(localizer: Localizer, found: list[Localization]) -> None:
    group = Groups(localizer).make("two", found[:2])
    assert (group.variants, group.same, group.leaking_before) == ((), 0, ())
    for member, own in zip(group.members, found, strict=False):
        assert (member.prompt, member.neurons, member.limit) == (own.prompt, len(own.refined), THRESHOLD)
        assert member.score == pytest.approx(left(localizer, own.prompt, group.neurons.indices), abs=1e-5)
        assert member.score < THRESHOLD
        assert member.overlap == own.refined.jaccard(group.neurons)


def test_a_list_goes_on_where_it_stopped(localizer: Localizer, found: list[Localization], tmp_path: Path) -> None:
    path, seen = tmp_path / "groups.jsonl", []
    clusters = {text: (text,) for text in PROMPTS}
    whole = Groups(localizer).make_all(clusters, found, path, lambda group: seen.append(group.name))
    assert [group.name for group in whole] == seen == list(PROMPTS[:2])  # the third is not memorized
    assert read_groups(path) == groups_in(tmp_path) == whole
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:50])
    again = Groups(localizer).make_all(clusters, found, path)
    assert again[0] == whole[0]
    assert again[1].model_copy(update={"seconds": whole[1].seconds}) == whole[1]
    assert read_groups(path) == again
    with pytest.raises(InputError, match="another checkpoint, prompts or settings"):
        Groups(localizer, 1).make_all(clusters, found, path)


def test_what_is_grouped() -> None:
    prompts = [Prompt(text=text) for text in ("red area rug by Mills", "a pig", "blue area rug by Mills", "a pig")]
    assert clusters_of(prompts, "prompt") == {p.text: (p.text,) for p in prompts}
    assert clusters_of(prompts, "list") == {"list": tuple(dict.fromkeys(p.text for p in prompts))}
    assert list(clusters_of(prompts, "cluster")) == ["area-rug-by-mills", "a-pig"]


def test_the_neurons_of_all_groups(localizer: Localizer, found: list[Localization], robust: Group, tmp_path: Path) -> None:
    assert all_neurons([], found) == union(found)
    other = Groups(localizer).make("other", found[1:2])
    assert all_neurons([robust, other], found) == robust.neurons | other.neurons
    assert groups_in(tmp_path) == []
