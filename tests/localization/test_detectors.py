"""Each detector is judged by its own score on the prompts that have a label."""

from __future__ import annotations

import pytest

from nemo_edge.localization.detection import Detection
from nemo_edge.localization.detectors import PAPER, label_of, rocs_of
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.system.errors import InputError


def detection(score: float, *norms: float) -> Detection:
    return Detection(inputs="i", prompt="p", score=score, memorized=score > 0.5, seeds=(), norms=norms)


@pytest.mark.parametrize(("kind", "label"), [("VM", True), (" tm", True), ("VM or TM", True), ("N", False), ("n ", False), ("", None)])
def test_a_type_is_a_label(kind: str, label: bool | None) -> None:
    assert label_of(Prompt(text="p", kind=kind)) is label


def test_each_detector_has_its_line() -> None:
    prompts = [Prompt(text="p", kind=kind) for kind in ("VM", "N", "", "N")]
    found = [detection(0.9, 1, 9), detection(0.2, 2, 3), detection(0.5, 9, 9), detection(0.95, 0, 1)]
    lines = {each.detector: each for each in rocs_of(prompts, found)}
    assert {name: each.rows for name, each in lines.items()} == {
        "MS-SSIM of noise differences": 2,
        "norm of the guidance difference, 2 latents": 2,
        "norm of the guidance difference, 1 latent": 1,
    }
    assert [each.auroc for each in lines.values()] == [0.5, 1, 0.5]
    assert set(PAPER) < set(lines)


def test_without_labels_there_is_no_line_and_with_one_kind_none_is_possible() -> None:
    assert rocs_of([Prompt(text="p")], [detection(0.9, 1)]) == ()
    with pytest.raises(InputError, match="none is labelled not memorized"):
        rocs_of([Prompt(text="p", kind="VM")], [detection(0.9, 1)])
