"""Known pictures are compared in every reading, and controls that are none, or seen, are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.measure.attacks.controls import Known, check_controls, check_unseen, known_prompts, list_controls
from nemo_edge.measure.replication import tiled_distances
from nemo_edge.recipe.prompts import Prompt
from nemo_edge.recipe.settings import AttackSettings
from nemo_edge.system.errors import InputError


def save(path: Path, seed: int, shape: tuple[int, int] = (32, 32)) -> np.ndarray:
    """A picture of broad patches."""
    small = np.random.default_rng(seed).integers(0, 256, (shape[0] // 8, shape[1] // 8, 3), np.uint8)
    picture = small.repeat(8, axis=0).repeat(8, axis=1)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(picture).save(path)
    return picture


def test_the_distance_is_that_of_the_nearest_reading(tmp_path: Path) -> None:
    wide = save(tmp_path / "wide.png", 0, (32, 48))
    known = Known(tmp_path / "wide.png", (32, 32), "a")
    left, centre = wide[:, :32], wide[:, 8:40]
    assert known.distances(np.stack([left, centre, save(tmp_path / "other.png", 1)]))[:2].tolist() == [0, 0]
    assert np.array_equal(known.nearest(np.stack([left])), left)
    assert np.array_equal(known.nearest(np.stack([centre])), centre)


def test_a_control_that_is_a_training_picture_is_refused_whatever_its_file_is(tmp_path: Path) -> None:
    save(tmp_path / "seen.png", 0)
    save(tmp_path / "new.png", 1)
    seen, new = (Known(tmp_path / f"{name}.png", (32, 32)) for name in ("seen", "new"))
    Image.open(seen.path).resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / "again.jpg", quality=95)
    again = Known(tmp_path / "again.jpg", (32, 32))
    threshold = float(tiled_distances(new.training.pictures_RHW3, seen.training.pictures_RHW3)[0, 0]) / 2
    check_unseen([new], [seen], threshold)
    with pytest.raises(InputError, match=r"again\.jpg is the training picture .*seen\.png"):
        check_unseen([new, again], [seen], threshold)


def test_controls_are_the_pictures_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_controls(tmp_path)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize(("name", "reason"), [("empty", "holds no picture"), ("file", "is a file"), ("absent", "does not exist")])
def test_a_folder_without_controls_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=reason):
        list_controls(tmp_path / name)


def test_prompts_without_their_pictures_are_named(tmp_path: Path) -> None:
    known, unknown, path = Prompt(text="a", image=tmp_path / "a.png"), Prompt(text="b"), tmp_path / "p.csv"
    settings = AttackSettings(seeds=1)
    assert known_prompts([known, known], path, settings) == (known,)
    assert known_prompts([known, unknown], path, AttackSettings(limit=1)) == (known,)
    with pytest.raises(InputError, match=r"p\.csv: no training picture is known for 1 of 2 prompts \('b'\), and the embedding attack"):
        known_prompts([known, unknown], path, settings)
    text = settings.model_copy(update={"starts": ()})
    with pytest.raises(InputError, match="these prompts and the others one after the other"):
        known_prompts([known, unknown], path, text)
    with pytest.raises(InputError, match=r"attack\.seeds must be 2 or more"):
        known_prompts([unknown], path, text)
    assert known_prompts([unknown], path, text.model_copy(update={"seeds": 2})) == (unknown,)


def test_known_pictures_need_controls_and_unknown_ones_have_none(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 0)
    known = Prompt(text="a", image=tmp_path / "a.png")
    with pytest.raises(InputError, match="no folder of control pictures is given"):
        check_controls(AttackSettings(), [known])
    assert check_controls(AttackSettings(controls=tmp_path), [known]) == (tmp_path / "a.png",)
    assert check_controls(AttackSettings(), [Prompt(text="b")]) == ()


def test_a_picture_of_the_mean_colour_is_no_copy(tmp_path: Path) -> None:
    """A picture of patches is nearer to its mean colour than to pictures that have nothing to do with it."""
    picture = save(tmp_path / "a.png", 0)
    known, mean = Known(tmp_path / "a.png", (32, 32)), np.broadcast_to(picture.mean((0, 1)).round().astype(np.uint8), picture.shape)
    plain = float(known.distances(mean[None])[0])
    assert known.limit(1.0) == pytest.approx(plain)
    assert known.limit(plain / 2) == plain / 2


def test_pictures_of_an_unknown_memory_are_held_against_each_other(tmp_path: Path) -> None:
    one, other = save(tmp_path / "a.png", 0), save(tmp_path / "b.png", 1)
    found = Known(None, (32, 32), "a").distances(np.stack([one, one, one, other]))
    assert found[:3].tolist() == [0, 0, 0]
    assert found[3] > 0.3
