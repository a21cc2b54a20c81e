"""The schema of a recipe: every setting is in it and described, and it takes what a recipe takes."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from jsonschema import Draft7Validator
from pydantic import BaseModel

from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.schema import DIRECTIVE, recipe_schema, schema_text, settings_of

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "engines").glob("*.toml"))
LEAST = {"name": "x", "output": "out", "checkpoint": {"path": "m"}, "prompts": {"memorized": "m.csv", "general": "g.txt"}}


def tables_of(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, str]]:
    """The table and the name of every setting, from the models themselves."""
    for name, field in model.model_fields.items():
        yield place, name
        for kind in kinds(field.annotation):
            yield from tables_of(kind, f"{place}.{name}".removeprefix("."))


def kinds(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from kinds(inner)


def refused(recipe: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft7Validator(recipe_schema()).iter_errors(recipe)]


def test_every_setting_is_there_and_described() -> None:
    found = list(settings_of(recipe_schema()))
    assert [(s.table, s.name) for s in found] == list(tables_of(Recipe))
    assert [f"{s.table}.{s.name}" for s in found if not s.schema.get("description", "").strip()] == []


def test_a_description_is_the_docstring_on_one_line() -> None:
    found = {(s.table, s.name): s.schema["description"] for s in settings_of(recipe_schema())}
    assert found["calibration", "prompts"] == "How many of the general prompts are used."
    assert not any("\n" in text or "  " in text for text in found.values())


def test_the_schema_is_one_and_knows_no_null() -> None:
    Draft7Validator.check_schema(recipe_schema())
    assert json.loads(schema_text()) == recipe_schema()
    assert "null" not in schema_text()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_recipes_name_it_and_keep_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first.startswith(DIRECTIVE)
    assert (path.parent / first.removeprefix(DIRECTIVE)).resolve() == ROOT / "docs" / "recipe.schema.json"
    assert refused(tomllib.loads(text)) == []


@pytest.mark.parametrize(
    "table",
    [
        {"latency": {"sizes": ["512x768", [64, 8]], "batches": [1, 4]}},
        {"gates": {"replication": False, "slow_down": 1.2}},
        {"tensorrt_rtx": {"targets": ["sm86"], "profiles": [{"batch": 2, "height": [512, 512, 768]}]}},
        {"checkpoint": {"path": "m", "loras": [{"path": "l.safetensors", "scale": 0.5}]}},
    ],
)
def test_it_takes_what_a_recipe_takes(table: dict[str, Any]) -> None:
    Recipe.model_validate({**LEAST, **table})
    assert refused({**LEAST, **table}) == []


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"calibration": {"treshold": 0.4}}, "'treshold' was unexpected"),
        ({"sampling": {"steps": 0}}, "0 is less than the minimum of 1"),
        ({"sampling": {"scheduler": "eule"}}, "'eule' is not one of"),
        ({"tensorrt_rtx": {"targets": ["sm90"]}}, "'sm90' is not one of"),
        ({"latency": {"sizes": [[64]]}}, "[64] is not valid under any of the given schemas"),
    ],
)
def test_it_refuses_what_a_recipe_refuses(table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Recipe.model_validate({**LEAST, **table})
    assert any(complaint in message for message in refused({**LEAST, **table})), refused({**LEAST, **table})
