"""Thumbnails fit the page however many pictures there are, and nothing is enlarged or silently lost."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.report.folder import write_report
from nemo_edge.report.thumbnails import PAGE_BYTES, Order, open_gallery, store_pictures, worst_first
from nemo_edge.system.errors import InputError
from report.test_evidence import evidence, measurement, mitigation, near, save_pictures, shown


def test_small_pictures_are_kept_exactly(tmp_path: Path) -> None:
    save_pictures(tmp_path / "full", edge=24)
    store_pictures(tmp_path / "full", tmp_path / "kept")
    for path in (tmp_path / "full").rglob("*.png"):
        kept = tmp_path / "kept" / path.relative_to(tmp_path / "full").with_suffix(".webp")
        with Image.open(path) as a, Image.open(kept) as b:
            assert np.array_equal(np.asarray(a), np.asarray(b.convert("RGB")))


def test_large_pictures_shrink_and_keep_their_shape(tmp_path: Path) -> None:
    path = tmp_path / "full" / "000" / "before-00.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (512, 256), "red").save(path)
    store_pictures(tmp_path / "full", tmp_path / "kept")
    with Image.open(tmp_path / "kept" / "000" / "before-00.webp") as kept:
        assert kept.size == (256, 128)


@pytest.mark.parametrize(("prompts", "seeds", "edge"), [(200, 2, 64), (12, 10, 320)])
def test_the_page_stays_below_its_size(tmp_path: Path, prompts: int, seeds: int, edge: int) -> None:
    """Noise compresses worst: 200 prompts of it, or large pictures."""
    save_pictures(tmp_path / "full", prompts, seeds, edge)
    made = evidence(prompts=tuple(f"prompt {i} " + "word " * 40 for i in range(prompts)))
    found = near(made.measurement, before=(0.1,) * seeds, after=tuple(0.4 + seed / 100 for seed in range(seeds)))
    made = replace(made, measurement=found)
    store_pictures(tmp_path / "full", tmp_path / "report" / "pictures", worst_first(made.measurement))
    write_report(tmp_path / "report", made)
    assert "<symbol" in (tmp_path / "report" / "index.html").read_text()  # what the pictures are nearest to is there too
    assert (tmp_path / "report" / "index.html").stat().st_size <= PAGE_BYTES


def test_the_worst_prompts_are_kept_when_not_all_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_edge.report.thumbnails._BUDGET", 60_000)
    save_pictures(tmp_path / "full", prompts=12, seeds=1, edge=64)
    store_pictures(tmp_path / "full", tmp_path / "report" / "pictures", Order([7, 3, 0, 1, 2, 4, 5, 6, 8, 9, 10, 11], []))
    kept = list(open_gallery(tmp_path / "report" / "pictures").prompts)
    assert {3, 7} <= set(kept)
    assert len(kept) < 12
    write_report(tmp_path / "report", evidence(prompts=tuple("abcdefghijkl")))
    assert f"{12 - len(kept)} more prompts were left out" in (tmp_path / "report" / "index.html").read_text()


def test_the_order_is_what_leaks_most_first() -> None:
    measured = measurement(prompts=("a", "b", "c", "d"))
    judged = (mitigation(), mitigation(neurons=0), mitigation(score_after=nan), mitigation(after=shown(2)))
    variants = tuple(v.model_copy(update={"mitigations": judged}) for v in measured.variants)
    assert worst_first(measured.model_copy(update={"variants": variants})) == Order([3, 2, 0], [1, 0])


def test_a_copy_that_is_there_only_after_is_shown() -> None:
    measured = measurement(prompts=("a", "b"), variants=("baked",))
    quiet = mitigation(neurons=0)
    for new in (mitigation(neurons=0, after=shown(1)), mitigation(training=False, neurons=0, after=shown(None, others=1))):
        judged = measured.variants[0].model_copy(update={"mitigations": (quiet, new)})
        assert worst_first(measured.model_copy(update={"variants": (judged,)})).prompts == [1]


def test_what_was_there_before_is_replaced_and_none_is_none(tmp_path: Path) -> None:
    save_pictures(tmp_path / "full", prompts=2)
    store_pictures(tmp_path / "full", tmp_path / "kept")
    assert len(open_gallery(tmp_path / "kept").prompts) == 2
    (tmp_path / "empty").mkdir()
    store_pictures(tmp_path / "empty", tmp_path / "kept")
    gallery = open_gallery(tmp_path / "kept")
    assert (gallery.training, gallery.prompts, gallery.general) == ({}, {}, {})
    assert open_gallery(tmp_path / "nowhere") == gallery


def test_seeds_are_in_their_order(tmp_path: Path) -> None:
    save_pictures(tmp_path / "full", prompts=1, seeds=12, which=("before",))
    gallery = open_gallery(tmp_path / "full")
    assert len(gallery.prompts[0]["before"]) == 12
    assert len(set(gallery.prompts[0]["before"])) == 12
    assert set(gallery.general) == {0, 1}


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "full" / "000" / "before-00.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"before-00\.png cannot be read"):
        store_pictures(tmp_path / "full", tmp_path / "kept")
