"""Numbers have an end."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from nemo_edge.recipe import limits
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.recipe import SettingError, from_keywords
from nemo_edge.recipe.settings import FidelitySettings, LatencySettings, LocalizationSettings, SamplingSettings
from nemo_edge.system.errors import InputError


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (limits.Seed, -1),
        (limits.Seed, 2**63),
        (limits.Pixels, 8200),
        (limits.Pixels, 12),
        (limits.Rows, 0),
        (limits.Rows, 5000),
        (limits.Count, 10**7),
        (limits.Factor, float("inf")),
        (limits.Factor, float("nan")),
        (limits.Seconds, 10**6),
        (limits.Share, 1.1),
        (limits.Size, "12"),
    ],
)
def test_what_is_beyond_is_refused(kind: object, given: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(given)


def test_what_is_meant_is_taken() -> None:
    assert TypeAdapter(limits.Size).validate_python("512x768") == (512, 768)
    assert TypeAdapter(limits.Seed).validate_python(2**32) == 2**32


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (SamplingSettings, {"guidance": float("inf")}),
        (SamplingSettings, {"height": 2**20}),
        (LocalizationSettings, {"seed": 2**64}),
        (LocalizationSettings, {"theta_step": 1e-300}),
        (FidelitySettings, {"curve": [1e300]}),
        (FidelitySettings, {"curve": [1] * 1000}),
        (FidelitySettings, {"seeds": 10**9}),
        (LatencySettings, {"seconds": 10**9}),
        (LatencySettings, {"batches": [10**9]}),
        (LatencySettings, {"sizes": ["8x80000"]}),
        (HardeningSettings, {"rounds": 10**12}),
    ],
)
def test_settings_have_an_end(kind: type, given: dict[str, object]) -> None:
    with pytest.raises(SettingError):
        from_keywords(kind, given)


def test_the_seeds_of_all_pictures_are_seeds() -> None:
    limits.check_seed(0, 64)
    for seed in (-1, limits.MOST_SEED - 10, 10**30):
        with pytest.raises(InputError, match="--seed"):
            limits.check_seed(seed, 64)
