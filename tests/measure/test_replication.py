"""Carlini's tiled distance, its threshold, and pictures as they come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nemo_edge.measure.replication import Training, copy_threshold, load_picture, nearest_readings, sscd_similarities, tiled_distances
from nemo_edge.system.errors import InputError


def pictures(count: int, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def test_the_distance_is_the_largest_over_sixteen_tiles() -> None:
    a = pictures(1)
    b = a.copy()
    b[0, :8, 8:16] = 255 - b[0, :8, 8:16]  # one tile of 8 × 8
    tile = np.abs(a[0, :8, 8:16] / 255.0 - b[0, :8, 8:16] / 255.0)
    assert tiled_distances(a, b)[0, 0] == pytest.approx(np.sqrt(np.square(tile).mean()), rel=1e-6)


def test_the_same_picture_is_at_no_distance_and_the_matrix_is_symmetric() -> None:
    a = pictures(3)
    distances = tiled_distances(a, a)
    assert np.diag(distances).tolist() == [0, 0, 0]
    assert distances == pytest.approx(distances.T)


def test_a_shared_background_does_not_make_a_copy() -> None:
    a = np.full((1, 32, 32, 3), 255, np.uint8)
    b = a.copy()
    b[0, 12:20, 12:20] = 0
    mean = np.sqrt(np.square(a / 255.0 - b / 255.0).mean())
    assert tiled_distances(a, b)[0, 0] == pytest.approx(2 * mean)


def test_each_training_picture_is_as_near_as_its_nearest_reading() -> None:
    a, b, c, d = pictures(4)
    training = Training.of([{"x": a, "y": b}, {"x": c}], (32, 32))
    distances, places = nearest_readings(np.stack([b, c, d]), training)
    assert (places[0, 0], places[:, 1].tolist()) == (1, [2, 2, 2])
    assert distances == pytest.approx(np.minimum(*(tiled_distances(np.stack([b, c, d]), np.stack(each)) for each in ([a, c], [b, c]))))
    assert (training.picture(0, "y") == b).all()
    assert (training.picture(0, "z") == a).all()
    assert nearest_readings(a[None], Training.of([], (32, 32)))[0].shape == (1, 0)


def test_many_pictures_have_the_distances_of_each_two() -> None:
    many = pictures(40, 8)
    assert tiled_distances(many[:3], many)[2, 35] == tiled_distances(many[2:3], many[35:36])[0, 0]


def test_the_threshold_lets_one_unrelated_pair_in_a_thousand_pass() -> None:
    unrelated = np.linspace(0.2, 0.8, 10_001)
    assert (unrelated < copy_threshold(unrelated)).mean() == pytest.approx(1e-3, abs=1e-4)


def test_a_picture_is_read_as_rgb_of_the_wanted_size(tmp_path: Path) -> None:
    Image.new("RGBA", (10, 20), (255, 0, 0, 255)).save(tmp_path / "x.png")
    read = load_picture(tmp_path / "x.png", (8, 4))
    assert read.shape == (8, 4, 3)
    assert read[0, 0].tolist() == [255, 0, 0]


def test_a_file_that_is_not_a_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no")
    with pytest.raises(InputError, match=r"x\.png"):
        load_picture(tmp_path / "x.png", (8, 8))


class Means(torch.nn.Module):
    """A stand-in network for the TorchScript interface: the mean of each channel is the embedding."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def test_sscd_is_the_cosine_of_the_network_s_embeddings(tmp_path: Path) -> None:
    torch.jit.script(Means()).save(str(tmp_path / "net.pt"))
    a = np.zeros((2, 32, 32, 3), np.uint8)
    a[1, :, :, 0] = 255
    similarities = sscd_similarities(a, a, tmp_path / "net.pt")
    assert np.diag(similarities) == pytest.approx(1)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    black, red = -mean / std, (np.array([1, 0, 0]) - mean) / std
    assert similarities[0, 1] == pytest.approx(black @ red / np.linalg.norm(black) / np.linalg.norm(red), abs=1e-5)


def test_a_file_that_is_not_torchscript_is_refused(tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_text("no")
    with pytest.raises(InputError, match="SSCD"):
        sscd_similarities(pictures(1), pictures(1), tmp_path / "net.pt")
