"""The settings of hardening."""

from __future__ import annotations

import pytest

from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.recipe import SettingError, from_keywords


def test_every_start_has_its_turn_by_default() -> None:
    assert HardeningSettings().starts == ("prompt", "noise", "unrelated")


@pytest.mark.parametrize(
    ("given", "said"), [({"rounds": 0}, "rounds"), ({"weights": "value"}, "weights"), ({"starts": ()}, "starts"), ({"round": 3}, "round")]
)
def test_what_makes_no_sense_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        from_keywords(HardeningSettings, given)
