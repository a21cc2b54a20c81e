"""The tables of a recipe: what they take, and what they say of what they do not."""

from __future__ import annotations

import tomllib

import pytest
from pydantic import ValidationError

from nemo_edge.recipe.settings import AttackSettings, CalibrationSettings, ExportSettings, GateSettings, LatencySettings


@pytest.mark.parametrize("name", GateSettings.model_fields)
@pytest.mark.parametrize("limit", [0, 0.0, 1, False])
def test_a_limit_of_nothing_is_a_limit_and_stays_one(name: str, limit: float | bool) -> None:
    """0 turns no gate off, neither as it is written in TOML nor where a manifest is read again; `false` does."""
    given = GateSettings.model_validate(tomllib.loads(f"{name} = {str(limit).lower()}"))
    again = GateSettings.model_validate_json(given.model_dump_json())
    for found in (getattr(given, name), getattr(again, name)):
        assert found is False if limit is False else found == limit and found is not False


def test_the_defaults_come_back_from_a_manifest_as_they_are() -> None:
    again = GateSettings.model_validate_json(GateSettings().model_dump_json())
    for name in GateSettings.model_fields:
        assert type(getattr(again, name)) is type(getattr(GateSettings(), name)), name
    assert again.replication is not False
    assert again.paraphrases is not False


@pytest.mark.parametrize(
    "given",
    [
        {"starts": (), "text": ()},
        {"text": ("greedy search",) * 2},
        {"starts": ("noise", "noise")},
        {"starts": ("end",)},
        {"steps": 0},
        {"unrelated": " "},
    ],
)
def test_an_attack_that_cannot_be_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AttackSettings.model_validate(given)


def test_what_is_pinned_is_in_latents_and_only_where_there_are_sizes() -> None:
    settings = ExportSettings(height=512, width=256, batch=2)
    assert settings.pinned(("height", "width"), 8) == {"height": 64, "width": 32, "batch": 2}
    assert settings.pinned((), 8) == {"batch": 2}
    assert ExportSettings().pinned(("height", "width"), 8) == {}


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"sizes": ["512"]}, "a size is HEIGHTxWIDTH in pixels, like 512x512"),
        ({"sizes": ["512x100"]}, "sizes are multiples of 8 pixels"),
        ({"batches": [1, 1]}, "a value is named twice"),
        ({"batches": [0]}, "batches and sizes are whole numbers from 1 on"),
    ],
)
def test_times_that_cannot_be_taken_are_refused(given: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        LatencySettings.model_validate(given)


def test_a_size_is_written_in_either_way() -> None:
    assert LatencySettings.model_validate({"sizes": ["512X768", [64, 8]]}).sizes == ((512, 768), (64, 8))


@pytest.mark.parametrize("limit", [True, -0.1, float("nan"), float("inf"), "0.1"])
def test_a_gate_is_a_number_or_false(limit: object) -> None:
    with pytest.raises(ValidationError, match="a gate is a number from 0 on, or false, which turns it off"):
        GateSettings.model_validate({"replication": limit})


def test_tables_take_no_other_keys_and_do_not_change() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        CalibrationSettings.model_validate({"treshold": 0.4})
    with pytest.raises(ValidationError, match="frozen"):
        CalibrationSettings().prompts = 3  # type: ignore[misc]
