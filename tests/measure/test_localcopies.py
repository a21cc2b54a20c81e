"""Copies of a part, which a distance of whole pictures does not see; and pictures that have nothing in common."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from nemo_edge.measure.localcopies import ENOUGH_PAIRS, local_distances, unrelated_distances
from nemo_edge.measure.mitigation import shown
from nemo_edge.measure.readings import WHOLE
from nemo_edge.measure.replication import Training, copy_threshold, nearest_readings

SIDE = 64


def scenes(count: int, seed: int = 0, side: int = SIDE) -> np.ndarray:
    """Pictures of smooth shapes, each of its own."""
    small = np.random.default_rng(seed).integers(0, 256, (count, 10, 10, 3), np.uint8)
    return np.stack([np.asarray(Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC)) for each in small])


def of(pictures: np.ndarray) -> Training:
    return Training.of([{WHOLE: picture} for picture in pictures], pictures.shape[1:3])


def cropped(picture: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(picture[24:60, 4:40]).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def shifted(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.concatenate([other[:, :21], picture[:, :-21]], axis=1)


def before_another_background(picture: np.ndarray, _: np.ndarray) -> np.ndarray:
    made = 255 - picture
    made[12:-12, 12:-12] = picture[12:-12, 12:-12]
    return made


def small(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    made = other.copy()
    made[9:49, 17:57] = np.asarray(Image.fromarray(picture).resize((40, 40), Image.Resampling.BICUBIC))
    return made


def mirrored_with_noise(picture: np.ndarray, _: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 12, picture.shape)
    return np.clip(picture[:, ::-1] + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("part", [cropped, shifted, before_another_background, small, mirrored_with_noise])
def test_a_part_is_found_wherever_it_stands_and_the_whole_is_not_near(part: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> None:
    pictures, others, unlike = scenes(3), scenes(12, seed=1), scenes(3, seed=2)
    training, made = of(pictures), np.stack([part(*pair) for pair in zip(pictures, others, strict=False)])
    whole, local = copy_threshold(nearest_readings(others, training)[0]), copy_threshold(unrelated_distances(others, training))
    for own in range(3):
        view = shown(made[own : own + 1], own, training, whole, local_threshold=local)
        assert (view.copies, view.local_copies) == (0, 1)
        assert view.local_distance is not None
        assert view.local_distance < 0.6 * local
        assert shown(unlike, own, training, whole, local_threshold=local).local_copies == 0


def test_the_same_picture_is_at_no_distance_at_any_size() -> None:
    for side in (32, 96, 200):
        pictures = scenes(2, side=side)
        distances = local_distances(pictures, of(pictures))
        assert np.diag(distances) == pytest.approx(0, abs=2e-3)
        assert distances[0, 1] > 0.6


def test_a_shared_plain_background_is_no_part() -> None:
    a, b = np.full((2, SIDE, SIDE, 3), 255, np.uint8)
    a[4:14, 4:14], b[40:60, 40:60] = (200, 0, 0), scenes(1)[0, :20, :20]
    assert local_distances(a[None], of(b[None]))[0, 0] > 0.6
    plain = np.full((1, SIDE, SIDE, 3), 128, np.uint8)
    assert local_distances(plain, of(plain)).tolist() == [[1]]
    assert local_distances(plain, of(scenes(1))).tolist() == [[1]]


def test_a_picture_that_is_not_square_is_searched_whole() -> None:
    wide = scenes(1, side=96)[0, 16:80]
    assert local_distances(wide[None, :, 32:], of(wide[None]))[0, 0] < 0.1


def test_the_threshold_s_pairs_are_of_every_training_picture_and_not_endless() -> None:
    general = scenes(5, seed=1)
    assert unrelated_distances(general, of(scenes(2))).shape == (10,)
    repeated = np.repeat(general, 60, axis=0)
    assert ENOUGH_PAIRS == 1000
    assert len(unrelated_distances(repeated, Training.of([{WHOLE: np.zeros((SIDE, SIDE, 3), np.uint8)}] * 10, (SIDE, SIDE)))) == 1000


def test_without_a_threshold_no_part_is_counted() -> None:
    view = shown(scenes(1), 0, of(scenes(1)), 0.1)
    assert (view.copies, view.local_copies, view.local_distance) == (1, None, None)
