"""How near a copy is, from pictures of prompts that are not memorized; blocked pictures and memories among them do not make it small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from painters import SIDE, noise

from nemo_edge.measure.attacks.controls import Known
from nemo_edge.serving.audit.calibration import Threshold, calibrate, memories_among, telling
from nemo_edge.system.errors import InputError

SIZE = (SIDE, SIDE)


def pixels(*seeds: str) -> np.ndarray:
    return np.stack([np.asarray(noise(seed)) for seed in seeds])


def drawn(*seeds: str) -> dict[str, np.ndarray]:
    return {f"{place} {seed}": np.asarray(noise(seed)) for place, seed in enumerate(seeds)}


@pytest.fixture
def known(tmp_path: Path) -> tuple[Known, ...]:
    for name in ("pig", "owl"):
        noise(name).save(tmp_path / f"{name}.png")
    return Known(tmp_path / "pig.png", SIZE), Known(tmp_path / "owl.png", SIZE)


def test_pictures_of_one_colour_and_those_of_two_prompts_tell_nothing() -> None:
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    nearly = black + np.random.default_rng(0).integers(0, 3, black.shape).astype(np.uint8)
    again = np.clip(pixels("x")[0].astype(int) + 1, 0, 255).astype(np.uint8)
    made = np.stack([*pixels("x", "y"), black, black, nearly, again, *pixels("z")])
    assert telling(made).tolist() == [False, True, False, False, False, False, True]


def test_what_is_far_below_the_others_is_a_memory_and_what_is_near_by_chance_is_none() -> None:
    distances = np.array([[0.5, 0.5], [0.003, 0.5], [0.5, 0.24], [0.5, 0.3], [0.5, 0.5]])
    assert memories_among(distances, np.array([0.2, 0.2])).tolist() == [False, True, False, False, False]
    assert memories_among(distances, np.array([0.2, 0.25])).tolist() == [False, True, True, False, False]
    assert memories_among(np.empty((2, 0)), np.empty(0)).tolist() == [False, False]


def test_thresholds_come_from_all_pairs(known: tuple[Known, ...]) -> None:
    found = calibrate(drawn("a", "b", "c", "d"), known, None, True, "it")
    assert (found.copies.pairs, found.alike.pairs) == (4 * 2, 4 * 3 // 2)
    assert found.alike.distance == found.apart
    far = calibrate(drawn("a", "b", "c", "d"), known, None, False, "it")
    assert far.alike == Threshold(None, None)
    assert 0.15 < far.apart < 0.3, "half of what unrelated pictures of noise are apart"
    assert calibrate(drawn("a", "b"), (), None, True, "it").copies == Threshold(None, None)
    assert calibrate(drawn("a", "b"), known, 0.1, True, "it").copies == Threshold(0.1, None)


def test_a_memory_among_them_is_named_and_makes_no_threshold_small(known: tuple[Known, ...]) -> None:
    plain = calibrate(drawn("a", "b", "c", "d"), known, None, True, "it")
    found = calibrate(drawn("a", "b", "c", "d", "pig"), known, None, True, "it")
    assert (found.memorized, found.copies, found.alike, found.texts) == (("4 pig",), plain.copies, plain.alike, plain.texts)


def test_blocked_pictures_make_no_threshold_small(known: tuple[Known, ...]) -> None:
    plain = calibrate(drawn("a", "b", "c", "d"), known, None, True, "it")
    found = calibrate(drawn("blocked", "a", "b", "blocked", "c", "d"), known, None, True, "it")
    assert (found.copies, found.alike) == (plain.copies, plain.alike)


@pytest.mark.parametrize(
    ("seeds", "given", "said"),
    [
        (("a", "b", "c", "pig", "owl"), None, r"it draws a listed training picture of 2 of 5 .*\('3 pig', '4 owl'\): take them out of"),
        (("a", "pig"), 0.2, "it draws a listed training picture of 1 of 2"),
        (("x",) * 5, None, r"it draws the same picture of different prompts, or a plain one, of 5 of 5 \('0 x', '1 x', '2 x', …\)"),
        (("a", "b", "x", "x", "x"), None, "of 3 of 5"),
        (("a", "x", "x"), 0.2, "of 2 of 3"),
    ],
)
def test_too_few_that_tell_something_are_refused(known: tuple[Known, ...], seeds: tuple[str, ...], given: float | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        calibrate(drawn(*seeds), known, given, True, "it")


def test_with_a_threshold_that_is_given_few_are_enough(known: tuple[Known, ...]) -> None:
    assert calibrate(drawn("a", "b", "x", "x", "x"), known, 0.2, True, "it").texts == ("0 a", "1 b")
