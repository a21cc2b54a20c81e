"""The JSON schema of a recipe, by which an editor completes and checks one: every setting with its description, range and default.

Knows the tables' types and docstrings; what does not go together is for the recipe itself to say.
"""

from __future__ import annotations

__all__ = ["DIRECTIVE", "Setting", "recipe_schema", "schema_text", "settings_of"]

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from nemo_edge.recipe.recipe import Recipe

DIRECTIVE = "#:schema "
"""What the first line of a recipe begins with where it names its schema, as Taplo and the editors that use it read it."""
_TITLE = "nemo-edge recipe"


class Setting(NamedTuple):
    """A setting as the schema has it: the table it is in, its name, and its own part of the schema."""

    table: str
    name: str
    schema: Mapping[str, Any]
    required: bool


def recipe_schema() -> dict[str, Any]:
    """Return the schema. Nothing in it may be null, which TOML cannot write: what is not given is left out."""
    made: dict[str, Any] = _written(Recipe.model_json_schema())
    return {"$schema": "http://json-schema.org/draft-07/schema#", **made, "title": _TITLE}


def schema_text() -> str:
    """Return the schema as its file has it."""
    return json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"


def settings_of(schema: Mapping[str, Any]) -> Iterator[Setting]:
    """Yield every setting of a recipe's schema, those of a table after the table itself, in the order of the recipe."""
    return _settings(schema, schema["$defs"], "")


def _settings(table: Mapping[str, Any], tables: Mapping[str, Any], place: str) -> Iterator[Setting]:
    for name, entry in table["properties"].items():
        below = _table_of(entry, tables)
        described = entry if below is None else {"description": below["description"], **entry}
        yield Setting(place, name, described, name in table.get("required", ()))
        if below is not None:
            yield from _settings(below, tables, f"{place}.{name}" if place else name)


def _table_of(entry: Mapping[str, Any], tables: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The table that an entry is, or is a list of; None for a value."""
    reference = entry.get("$ref") or entry.get("items", {}).get("$ref")
    found: Mapping[str, Any] | None = tables[reference.rpartition("/")[2]] if reference else None
    return found


def _written(value: Any) -> Any:
    """A part of pydantic's schema as TOML and the seventh draft of JSON schema have it.

    Without null, without titles, which say a name again, and without the defaults of a whole table, which its settings say; with
    descriptions on one line, and one schema for all entries of a list.
    """
    if isinstance(value, list):
        return [_written(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {name: _written(each) for name, each in value.items() if not _left_out(name, each)}
    if isinstance(found.get("description"), str):
        found["description"] = " ".join(found["description"].split())
    if "prefixItems" in found:
        found["items"] = found.pop("prefixItems")[0]
    kinds = [kind for kind in found.pop("anyOf", ()) if kind != {"type": "null"}]
    return {**kinds[0], **found} if len(kinds) == 1 else {"anyOf": kinds, **found} if kinds else found


def _left_out(name: str, value: Any) -> bool:
    if name == "title":
        return isinstance(value, str)
    return name == "default" and (value is None or any(isinstance(each, dict) for each in (value if isinstance(value, list) else [value])))
