"""Targets of TensorRT engines: what a recipe may ask for."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from nemo_edge.recipe.targets import ProfileSettings, TensorRtRtxSettings, target_name


def test_a_number_stands_for_a_range_of_one_value() -> None:
    assert ProfileSettings.model_validate({"batch": 2, "height": [256, 512, 768]}).batch == (2, 2, 2)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"batch": [4, 1, 2]}, r"batch = \[4, 1, 2\]: give least, usual and greatest"),
        ({"batch": 0}, "batch"),
        ({"height": [512, 512, 500]}, "height"),
        ({"width": [500, 512, 768]}, "multiples of 8 pixels"),
    ],
)
def test_a_range_out_of_order_or_off_the_grid_is_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        ProfileSettings.model_validate(given)


def test_an_unknown_capability_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="does not compile for 'sm90'; it does for sm75, sm80, sm86, sm89, sm120, sm121"):
        TensorRtRtxSettings.model_validate({"targets": ["sm90"]})


def test_targets_are_in_one_order_so_that_one_choice_has_one_name() -> None:
    chosen = TensorRtRtxSettings.model_validate({"targets": ["sm120", "sm86"]}).targets
    assert target_name(chosen) == "sm86+sm120"
    assert target_name(()) == "portable"


def test_a_capability_given_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="named twice"):
        TensorRtRtxSettings.model_validate({"targets": ["sm86", "sm86"]})
