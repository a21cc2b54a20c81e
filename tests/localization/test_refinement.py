"""Sets that are refined together keep every prompt below its limit, and hold no neuron that could be given back."""

from __future__ import annotations

import pytest
from reference import blocked_score

from nemo_edge.localization.localizer import Localizer
from nemo_edge.localization.refinement import Suspect, refine_together, scores_left
from nemo_edge.model.neurons import NeuronSet

SAMPLES, THRESHOLD = 4, 0.7
PROMPTS = ("koala kiwifruit meridian", "lizard souvenir", "trolleybus broccoli carnival")


@pytest.fixture(scope="module")
def localizer(demo_localizer: Localizer) -> Localizer:
    return demo_localizer


def suspects(localizer: Localizer, *prompts: str, extra: int = 0) -> list[Suspect]:
    """Prompts whose own sets have so many neurons too many."""
    made = []
    for number, found in enumerate(localizer.localize_all(prompts)):
        examined = localizer.examine(found.prompt)
        localizer.trials.keep(examined.subject, found.seeds)
        more = found.refined | found.refined.others(extra, seed=number)
        made.append(Suspect(found.model_copy(update={"refined": more}), examined, found.threshold))
    return made


def left(localizer: Localizer, suspect: Suspect, neurons: NeuronSet) -> float:
    lists = [list(chosen) for chosen in neurons.indices]
    return blocked_score(localizer.checkpoint, suspect.found.prompt, lists, SAMPLES, list(suspect.found.seeds))


def test_one_prompt_keeps_its_own_set(localizer: Localizer) -> None:
    [suspect] = suspects(localizer, PROMPTS[0], extra=3)
    assert refine_together(localizer.trials, [suspect]) == suspect.found.refined


def test_the_set_is_1_minimal_for_all_together(localizer: Localizer) -> None:
    some = suspects(localizer, *PROMPTS, extra=5)
    found = refine_together(localizer.trials, some)
    assert 0 < len(found) < len({n for s in some for n in enumerate(s.found.refined.indices)}) + 15
    assert [s.limit for s in some] == [THRESHOLD] * 3
    scores = scores_left(localizer.trials, some, found)
    for suspect, score in zip(some, scores, strict=True):
        assert score < suspect.limit
        assert score == pytest.approx(left(localizer, suspect, found), abs=1e-5)
    for layer, chosen in enumerate(found.indices):
        for index in chosen:
            single = NeuronSet.from_lists(found.layers, [[index] if place == layer else [] for place in range(len(found.layers))])
            assert max(left(localizer, s, found - single) - s.limit for s in some) >= 0


def test_a_prompt_that_all_neurons_do_not_help_is_held_to_what_they_do(localizer: Localizer) -> None:
    helped, lost = suspects(localizer, *PROMPTS[:2])
    lost.found = lost.found.model_copy(update={"refined": lost.found.refined.others(1, seed=0)})
    found = refine_together(localizer.trials, [helped, lost])
    assert helped.limit == THRESHOLD < lost.limit
    assert left(localizer, helped, found) < THRESHOLD
    assert left(localizer, lost, found) <= lost.limit + 1e-6
