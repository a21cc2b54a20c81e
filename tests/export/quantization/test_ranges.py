"""Histograms of magnitudes and the limits made of them, held against numpy on the values themselves."""

from __future__ import annotations

import json
from math import gcd
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from nemo_edge.export.quantization.ranges import Histogram, Limit, Ranges, step_of
from nemo_edge.recipe.quantization import SHARES
from nemo_edge.system.errors import InputError


def of(*parts: np.ndarray) -> Histogram:
    histogram = Histogram()
    for part in parts:
        histogram.add(part)
    return histogram


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(0).standard_t(3, 100_000).astype(np.float32)


def test_the_largest_value_is_exact_and_each_share_of_the_values_stays_below_its_limit(values: np.ndarray) -> None:
    limits = of(values).limits()
    assert limits[0].value == np.abs(values).max()
    for limit in limits:
        assert (np.abs(values) <= limit.value).mean() >= limit.share
        exact = np.quantile(np.abs(values), limit.share)
        assert exact <= limit.value * 1.001
        assert limit.value <= exact * 1.03


def test_the_error_is_what_rounding_to_255_levels_changes(values: np.ndarray) -> None:
    for limit in of(values).limits():
        step = limit.value / 127
        rounded = np.clip(np.rint(values / step), -127, 127) * step
        exact = float(np.sqrt(np.square(values - rounded).mean() / np.square(values).mean()))
        assert limit.integers == pytest.approx(exact, rel=0.03)
        floats = np.clip(values / (limit.value / 448), -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * (limit.value / 448)
        assert limit.floats == pytest.approx(float(np.sqrt(np.square(values - floats).mean() / np.square(values).mean())), rel=0.1)


def test_of_many_values_some_are_counted_and_all_looked_at() -> None:
    many = np.random.default_rng(1).standard_normal(600_000).astype(np.float32)
    many[-1] = 77
    found = of(many)
    assert found.largest == 77
    assert found.counts.sum() <= 1 << 17
    assert found.limits()[2].value == pytest.approx(np.quantile(np.abs(many), 0.9999), rel=0.1)
    many[123_457] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        of(many)


@pytest.mark.parametrize("channel", [1, 4, 1279])
def test_one_loud_channel_of_many_is_counted_as_often_as_it_is_there(channel: int) -> None:
    many = np.random.default_rng(1).standard_normal((2, 256, 1280)).astype(np.float32)
    many[..., channel] *= 50
    limit = of(many).limits()[2].value
    assert limit == pytest.approx(np.quantile(np.abs(many), 0.9999), rel=0.2)
    assert limit > 50


def test_a_step_meets_every_channel_of_layers_of_usual_widths() -> None:
    for size in range(1, 1 << 24, 99_991):
        step = step_of(size)
        assert gcd(step, 320 * 9) == 1
        assert size / step <= 1 << 17


def test_parts_in_any_order_count_as_the_whole(values: np.ndarray) -> None:
    whole, parts = of(values), of(*np.array_split(values[::-1], 7))
    assert (whole.counts == parts.counts).all()
    assert whole.limits() == parts.limits()


def test_a_tensor_of_zeros_has_a_range_of_nothing() -> None:
    assert of(np.zeros((2, 3), np.float32)).limits() == tuple(Limit(share, 0.0, 0.0, 0.0) for share in SHARES)
    assert Histogram().limits() == of(np.zeros(1, np.float32)).limits()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_and_not_counted(bad: float) -> None:
    histogram = of(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        histogram.add(np.array([1, bad], np.float32))
    assert (histogram.counts.sum(), histogram.largest) == (3, 1.0)


def test_the_smallest_and_largest_floats_have_limits() -> None:
    tiny, huge = np.float32(1e-42), np.float32(3e38)
    assert of(np.array([tiny])).limits()[0].value == tiny
    assert of(np.array([huge])).limits()[0].value == huge


def test_ranges_are_written_and_read_alike(tmp_path: Path) -> None:
    limits = of(np.arange(9, dtype=np.float32)).limits()
    ranges = Ranges(
        component="unet", source="s", prompts=("a dog",), seed=0, sampling={"steps": 3}, version="1", inputs={"a": limits}, outputs={}
    )
    ranges.write(tmp_path / "ranges.json")
    assert Ranges.read(tmp_path / "ranges.json") == ranges


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"\xff\xfe"])
def test_what_holds_no_ranges_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.json").write_bytes(content)
    with pytest.raises(InputError, match=r"r\.json (holds no ranges|cannot be read as JSON|is not UTF-8)"):
        Ranges.read(tmp_path / "r.json")


@pytest.mark.parametrize(("limits", "said"), [([], "expected a limit for each of the shares"), ([-1.0] * 4, "not a finite number")])
def test_limits_that_are_none_are_named(tmp_path: Path, limits: list[float], said: str) -> None:
    broken = [[share, value, 0.0, 0.0] for share, value in zip(SHARES, limits, strict=False)]
    known = {"component": "unet", "source": "s", "prompts": ["a"], "seed": 0, "sampling": {}, "version": "1", "outputs": {}}
    (tmp_path / "r.json").write_text(json.dumps({**known, "inputs": {"m": broken}}))
    with pytest.raises(InputError, match=f"holds no ranges: .*{said}"):
        Ranges.read(tmp_path / "r.json")


def test_ranges_of_no_prompts_are_none(tmp_path: Path) -> None:
    known = {"component": "unet", "source": "s", "seed": 0, "sampling": {}, "version": "1", "inputs": {}, "outputs": {}}
    (tmp_path / "r.json").write_text(json.dumps({**known, "prompts": []}))
    with pytest.raises(InputError, match=r"r\.json holds no ranges: .*at least 1 item"):
        Ranges.read(tmp_path / "r.json")


def test_ranges_of_another_component_are_none(tmp_path: Path) -> None:
    known = {"source": "s", "prompts": ["a"], "seed": 0, "sampling": {}, "version": "1", "inputs": {}, "outputs": {}}
    (tmp_path / "r.json").write_text(json.dumps({**known, "component": "vae_decoder"}))
    with pytest.raises(InputError, match=r"r\.json holds no ranges: Input should be 'unet'"):
        Ranges.read(tmp_path / "r.json")


def test_ranges_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"r\.json does not exist: give the ranges\.json of a bundle"):
        Ranges.read(tmp_path / "r.json")
