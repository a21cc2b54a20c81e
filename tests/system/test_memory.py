"""Memory: what is free, and how much runs together, which does not hang on it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nemo_edge.localization.calibration import calibrate
from nemo_edge.localization.detection import Detector
from nemo_edge.localization.localizer import Localizer
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.system import memory
from nemo_edge.system.errors import InputError
from nemo_edge.system.memory import (
    check_room,
    learned_rows_at_once,
    memory_available,
    pictures_at_once,
    room_bytes,
    rows_at_once,
    search_bytes,
)

CPU = torch.device("cpu")
SETTINGS = LocalizationSettings(samples=2)


def test_memory_is_what_linux_or_a_control_group_leaves(tmp_path: Path) -> None:
    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal: 200 kB\nMemAvailable:       100 kB\n")
    assert memory_available(tmp_path) == 102_400
    write("sys/fs/cgroup/memory.max", "max\n")
    write("sys/fs/cgroup/memory.current", "1000\n")
    assert memory_available(tmp_path) == 102_400
    write("sys/fs/cgroup/memory.max", "51000\n")
    assert memory_available(tmp_path) == 50_000
    write("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n")
    write("sys/fs/cgroup/memory/memory.usage_in_bytes", "3000\n")
    assert memory_available(tmp_path) == 0
    assert memory_available() > 0


def test_the_methods_ten_latents_of_512_pixels_run_together() -> None:
    """As the official code runs them; more where pictures are small, fewer where they are large, and one at the least."""
    assert [rows_at_once(side**2) for side in (64, 256, 512, 768, 1024, 4096)] == [64, 40, 10, 4, 2, 1]
    assert [pictures_at_once(side**2) for side in (64, 256, 512, 1024)] == [10, 8, 2, 1]


def test_what_is_kept_takes_no_more_than_there_is_room_for() -> None:
    pixels = 512**2
    assert search_bytes(pixels, 10, 0) == 10 * 950 * pixels
    assert search_bytes(pixels, 10, 10) - search_bytes(pixels, 10, 0) == 10 * 610 * pixels
    assert search_bytes(pixels, 10, 80) - search_bytes(pixels, 10, 0) == room_bytes(CPU)


def test_too_little_free_memory_is_refused_with_the_remedy() -> None:
    check_room(CPU, 512**2, 10, available=3 * 10**9)
    with pytest.raises(
        InputError, match=r"^10 rows of the UNet together take about 2.5 GB of memory, and 1.0 GB are free on cpu: .* below 10"
    ):
        check_room(CPU, 512**2, 10, available=10**9)
    with pytest.raises(InputError, match=r"about 5.0 GB .* localization.rows below 10 and localization.prompts = 1 in the recipe"):
        check_room(CPU, 512**2, 10, kept=80, available=3 * 10**9)


def test_a_gradient_goes_through_few_rows_of_large_pictures_and_at_least_one() -> None:
    assert learned_rows_at_once(64 * 64) >= 8
    assert learned_rows_at_once(1024 * 1024) == 1
    for pixels in (64 * 64, 256 * 256, 512 * 512):
        assert learned_rows_at_once(pixels) <= rows_at_once(pixels)
    assert learned_rows_at_once(512 * 512, 40 * memory.GB) >= 8


def test_rows_do_not_hang_on_what_is_free(toy: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """However little there is: the same rows, or none."""
    statistics = calibrate(toy, ["a pig", "a bus"], SETTINGS, with_threshold=False).statistics
    height, width = toy.config.pixel_size
    needed = search_bytes(height * width, rows_at_once(height * width), SETTINGS.samples * SETTINGS.prompts)
    found = []
    for free in (needed, 10**12):
        monkeypatch.setattr(memory, "memory_available", lambda free=free: free)
        localizer, detector = Localizer(toy, statistics, 0.5, SETTINGS), Detector(toy, 0.5, SETTINGS)
        found.append((localizer.trials.at_once, localizer.trials.memory_bytes, detector._at_once))
    assert found[0] == found[1]
    monkeypatch.setattr(memory, "memory_available", lambda: needed - 1)
    with pytest.raises(InputError, match=r"localization\.rows"):
        Localizer(toy, statistics, 0.5, SETTINGS)
    monkeypatch.setattr(memory, "memory_available", lambda: 0)
    with pytest.raises(InputError, match=r"localization\.rows"):
        Detector(toy, 0.5, SETTINGS)


def test_pictures_that_do_not_fit_are_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_available", lambda: 8 * memory.GB)
    memory.check_drawing(512, 512, 8, 64)
    with pytest.raises(InputError, match=r"8 pictures of 8192 × 8192 together take about .* GB are free: ask for fewer or smaller ones"):
        memory.check_drawing(8192, 8192, 8, 8)
    monkeypatch.setattr(memory, "memory_available", lambda: 2 * memory.GB)
    with pytest.raises(InputError, match="ask for fewer"):
        memory.check_drawing(1024, 1024, 1, 1000)
