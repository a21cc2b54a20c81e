"""Example feeds are what the ports say."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from nemo_edge.model.component import VALUE_MASK, Component, Port

PORTS = (
    Port("sample", ("batch", 4, "height", "width")),
    Port("input_ids", ("batch", 7), "ids", 5),
    Port("timestep", ("batch",), "time", 1000),
    Port(VALUE_MASK, ("batch", 30), "mask"),
)
COMPONENT = Component("unet", nn.Identity(), PORTS, ("out_sample",), {"height": 8, "width": 6})


def test_an_example_has_the_dimensions_of_the_ports() -> None:
    assert {name: array.shape for name, array in COMPONENT.example(3, width=9).items()} == {
        "sample": (3, 4, 8, 9),
        "input_ids": (3, 7),
        "timestep": (3,),
        VALUE_MASK: (3, 30),
    }


def test_an_example_holds_what_the_ports_hold() -> None:
    feed = COMPONENT.example(50)
    assert feed["input_ids"].dtype == np.int64
    assert set(np.unique(feed["input_ids"])) == set(range(5))
    assert {array.dtype for name, array in feed.items() if name != "input_ids"} == {np.dtype(np.float32)}
    assert (feed["timestep"] == feed["timestep"].round()).all()
    assert 0 <= feed["timestep"].min() < feed["timestep"].max() < 1000
    assert set(np.unique(feed[VALUE_MASK])) == {0, 1}


@pytest.mark.parametrize("name", [port.name for port in PORTS])
def test_a_seed_gives_its_example(name: str) -> None:
    assert np.array_equal(COMPONENT.example(4, seed=1)[name], COMPONENT.example(4, seed=1)[name])
    assert not np.array_equal(COMPONENT.example(4, seed=1)[name], COMPONENT.example(4, seed=2)[name])
