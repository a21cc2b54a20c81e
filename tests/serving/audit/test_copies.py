"""Whether pictures are copies: of the training picture of their prompt, of another's, or by being alike; a plain colour is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from painters import SIDE, noise
from PIL import Image

from nemo_edge.measure.attacks.controls import Known
from nemo_edge.serving.audit.base import Begun
from nemo_edge.serving.audit.copies import Gallery, alike_distances, alike_limits

BEGUN = Begun(
    inputs="", date="", size=(SIDE, SIDE), seeded=True, copy_threshold=0.3, copy_pairs=None, alike_threshold=0.2, alike_pairs=None
)


def pixels(*seeds: str) -> np.ndarray:
    return np.stack([np.asarray(noise(seed)) for seed in seeds])


def by_seed(pictures: np.ndarray) -> dict[int, np.ndarray]:
    return dict(enumerate(pictures))


def near(picture: np.ndarray) -> np.ndarray:
    """The picture, nine levels off at the most."""
    return np.clip(picture.astype(int) + np.random.default_rng(0).integers(-9, 10, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def known(tmp_path: Path) -> tuple[Known, Known]:
    for name in ("pig", "owl"):
        noise(name).save(tmp_path / f"{name}.png")
    size = (SIDE, SIDE)
    return Known(tmp_path / "pig.png", size, "a pig"), Known(tmp_path / "owl.png", size, "an owl")


def test_a_copy_of_its_own_picture_and_of_another_s(known: tuple[Known, Known]) -> None:
    pig, owl = known
    drawn = np.stack([near(pixels("pig")[0]), pixels("else")[0], near(pixels("owl")[0])])
    attempts, others = Gallery(known, BEGUN).attempts(pig, by_seed(drawn), "text")
    assert [(a.seed, a.copied, a.text) for a in attempts] == [(0, True, "text"), (1, False, "text"), (2, False, "text")]
    assert [(o.seed, o.prompt, o.picture) for o in others] == [(2, "an owl", owl.digest)]
    assert attempts[0].distance < 0.05 < 0.3 < attempts[1].distance


def test_seeds_are_those_that_were_drawn(known: tuple[Known, Known]) -> None:
    drawn = {1: pixels("else")[0], 3: pixels("pig")[0], 5: pixels("owl")[0]}
    attempts, others = Gallery(known, BEGUN).attempts(known[0], drawn, "")
    assert [(a.seed, a.copied) for a in attempts] == [(1, False), (3, True), (5, False)]
    assert [o.seed for o in others] == [5]
    assert [(a.seed, a.copied) for a in Gallery(known, BEGUN).control_attempts(drawn, "")] == [(1, False), (3, True), (5, True)]


def test_a_copy_of_its_own_picture_is_not_another_s_too(known: tuple[Known, Known], tmp_path: Path) -> None:
    """Of two files of one picture, as lists have them."""
    Image.fromarray(near(pixels("pig")[0])).save(tmp_path / "again.png")
    again = Known(tmp_path / "again.png", (SIDE, SIDE), "the pig again")
    attempts, others = Gallery((*known, again), BEGUN).attempts(known[0], by_seed(pixels("pig", "owl")), "")
    assert [a.copied for a in attempts] == [True, False]
    assert [(o.seed, o.prompt) for o in others] == [(1, "an owl")]


def test_a_picture_that_is_alone_is_alike_to_none() -> None:
    assert np.array_equal(alike_distances(pixels("x")), [np.inf])


def test_the_plain_mean_colour_of_a_picture_is_no_copy(known: tuple[Known, Known]) -> None:
    pig, _ = known
    mean = np.broadcast_to(pixels("pig").mean((1, 2)).round().astype(np.uint8), (2, SIDE, SIDE, 3))
    loose = BEGUN.model_copy(update={"copy_threshold": 1.0})
    attempts, _ = Gallery((pig,), loose).attempts(pig, by_seed(mean + np.uint8(1)), "")
    assert not any(a.copied for a in attempts)
    assert Gallery((pig,), loose).attempts(pig, by_seed(pixels("pig", "pig")), "")[0][0].copied


def test_without_a_picture_it_is_whether_seeds_are_alike(known: tuple[Known, Known]) -> None:
    own, gallery = Known(None, (SIDE, SIDE), "who knows"), Gallery(known, BEGUN)
    alike, _ = gallery.attempts(own, by_seed(np.stack([near(pixels("x")[0]), pixels("x")[0], pixels("x")[0]])), "")
    assert [a.copied for a in alike] == [True, True, True]
    different, others = gallery.attempts(own, by_seed(pixels("x", "y", "owl")), "")
    assert [a.copied for a in different] == [False, False, False]
    assert [o.prompt for o in others] == ["an owl"], "and it may be another prompt's training picture"


def test_pictures_of_one_colour_are_alike_and_no_memory() -> None:
    black = np.zeros((3, SIDE, SIDE, 3), np.uint8)
    assert np.array_equal(alike_distances(black), [0, 0, 0])
    assert (alike_distances(black) > alike_limits(black, 0.2)).all()
    assert np.array_equal(alike_limits(pixels("x", "y"), 0.2), [0.2, 0.2])


def test_a_control_counts_where_it_is_a_copy_of_any(known: tuple[Known, Known]) -> None:
    drawn = np.stack([pixels("else")[0], near(pixels("owl")[0])])
    assert [a.copied for a in Gallery(known, BEGUN).control_attempts(by_seed(drawn), "")] == [False, True]
    assert [a.copied for a in Gallery((), BEGUN).control_attempts(by_seed(pixels("x", "x")), "")] == [True, True]
    assert [a.copied for a in Gallery((), BEGUN).control_attempts(by_seed(pixels("x", "y")), "")] == [False, False]
