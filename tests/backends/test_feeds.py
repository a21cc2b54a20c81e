"""What a feed must be, in the words that every backend uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from nemo_edge.backends.feeds import check_feed, in_batches
from nemo_edge.model.component import VALUE_MASK
from nemo_edge.system.errors import InputError

INPUTS = {"sample": ("batch", 4, "height"), VALUE_MASK: ("batch", 3)}
Feed = dict[str, np.ndarray]


def good(batch: int = 2) -> Feed:
    return {"sample": np.zeros((batch, 4, 8), np.float32), VALUE_MASK: np.ones((batch, 3), np.float32)}


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_size_of_a_dynamic_dimension_passes(batch: int) -> None:
    check_feed(good(batch), INPUTS)


def test_an_unnamed_dimension_takes_any_size() -> None:
    check_feed({"x": np.zeros((7, 2), np.float32)}, {"x": (None, 2)})


@pytest.mark.parametrize("factor", [0.0, 0.25, 1.0])
def test_factors_from_0_to_1_pass(factor: float) -> None:
    check_feed(good() | {VALUE_MASK: np.full((2, 3), factor, np.float32)}, INPUTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop(VALUE_MASK), r"lacks 'value_mask': this graph takes sample, value_mask"),
        (lambda f: f.update(time=np.zeros(2)), r"has no input 'time': this graph takes sample, value_mask"),
        (lambda f: f.update(sample=np.zeros((2, 4))), r"'sample' has shape \[2, 4\], expected \[batch, 4, height\]"),
        (lambda f: f.update(sample=np.zeros((2, 5, 8))), r"'sample' has shape \[2, 5, 8\], expected \[batch, 4, height\]"),
        (lambda f: f.update(value_mask=np.ones((2, 4))), r"'value_mask' has shape \[2, 4\], expected \[batch, 3\]"),
        (lambda f: f.update(value_mask=np.ones(3)), r"'value_mask' has shape \[3\], expected \[batch, 3\]"),
    ],
)
def test_a_feed_that_does_not_fit_is_refused(change: Callable[[Feed], object], message: str) -> None:
    feed = good()
    change(feed)
    with pytest.raises(InputError, match=message):
        check_feed(feed, INPUTS)


@pytest.mark.parametrize("factor", [np.nan, np.inf, -np.inf, -0.01, 1.01])
def test_a_factor_that_is_none_is_refused(factor: float) -> None:
    feed = good()
    feed[VALUE_MASK][1, 2] = factor
    with pytest.raises(InputError, match=r"value_mask must hold factors from 0 to 1"):
        check_feed(feed, INPUTS)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7])
def test_any_number_of_rows_runs_on_a_pinned_batch(rows: int) -> None:
    sizes: list[int] = []

    def run(feed: Feed) -> Feed:
        sizes.append(len(feed["x"]))
        return {"y": feed["x"] * 2}

    x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    assert (in_batches({"x": x}, 2, run)["y"] == x * 2).all()
    assert sizes == [2] * -(-rows // 2)
