"""Near-duplicate prompts are in one cluster, with a name that says what they share."""

from __future__ import annotations

from conftest import shared_data

from nemo_edge.localization.clusters import cluster, words
from nemo_edge.recipe.prompts import Prompt, read_prompts


def prompts(*texts: str, **named: str) -> list[Prompt]:
    return [Prompt(text=text, cluster=named.get(text, "")) for text in texts]


def test_words_have_no_case_and_no_punctuation() -> None:
    assert words("A  red-hot Pig, drawn!") == ["a", "red", "hot", "pig", "drawn"]


def test_prompts_that_share_most_words_are_together() -> None:
    found = cluster(prompts("red area rug by Mills", "a whale", "blue area rug by Mills", "Grey Area Rug by mills."))
    assert found == {
        "area-rug-by-mills": ("red area rug by Mills", "blue area rug by Mills", "Grey Area Rug by mills."),
        "a-whale": ("a whale",),
    }


def test_a_prompt_joins_what_it_links() -> None:
    chain = ("one two three four", "three four five six", "one two three four five six")
    assert list(cluster(prompts(*chain[:2])).values()) == [(chain[0],), (chain[1],)]
    assert list(cluster(prompts(*chain)).values()) == [chain]


def test_clusters_that_the_list_names_are_taken() -> None:
    found = cluster(prompts("red area rug", "blue area rug", "a whale", **{"red area rug": "mine", "a whale": "mine"}))
    assert found == {"mine": ("red area rug", "a whale"), "blue-area-rug": ("blue area rug",)}


def test_a_prompt_that_is_twice_in_the_list_is_once_in_its_cluster_and_names_are_distinct() -> None:
    found = cluster(prompts("a pig", "a pig", "!!", "a-pig b c d e f", "?"))
    assert sum(found.values(), ()) == ("a pig", "!!", "?", "a-pig b c d e f")
    assert list(found) == ["a-pig", "cluster", "a-pig-b-c"]
    distinct = cluster(prompts("a b c d x y z w v u", "a b c d k l m n o p"))
    assert list(distinct) == ["a-b-c-d", "a-b-c-d-2"]


def test_the_memorized_prompts_of_stable_diffusion() -> None:
    found = cluster(read_prompts(shared_data("memorized_laion_prompts.csv")))
    assert len(found) == 291
    assert max(found.values(), key=len)[0].startswith("Aero 51-204710")
