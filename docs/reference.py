"""Writes the pages and schemas of the reference that are code's own words.

    python docs/reference.py [--check]

What a recipe may have: `docs/recipe.schema.json` for editors, `docs/recipe.md` for people; `docs/report.schema.json`, the keys of a report;
and `docs/help.md`, what each command says of itself. With `--check` nothing is written; exit code 1 when one of them is not what the code
says.
"""

from __future__ import annotations

__all__ = ["help_page", "recipe_page"]

import argparse
import json
import sys
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import typer

from nemo_edge.cli.main import app
from nemo_edge.cli.panels import EXAMPLES
from nemo_edge.recipe.schema import Setting, recipe_schema, schema_text, settings_of
from nemo_edge.report._record import Report

DOCS = Path(__file__).parent
HEAD = """# What a recipe may have

Every setting of a recipe (TOML), with its values and its default, written by `python docs/reference.py` from the settings themselves. A
recipe whose first line is `#:schema` and the way to [recipe.schema.json](recipe.schema.json) is completed and checked by editors with
[Taplo](https://taplo.tamasfe.dev) (Even Better TOML); `nemo-edge init` writes such a recipe for a checkpoint. Paths are relative to the
recipe's folder. Where prompt lists come from: [prompts.md](prompts.md).
"""


def main() -> None:
    """Write all files, or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a file is not up to date")
    check = parser.parse_args().check
    texts = {
        "recipe.schema.json": schema_text(),
        "recipe.md": recipe_page(recipe_schema()),
        "help.md": help_page(),
        "report.schema.json": json.dumps(Report.model_json_schema(), indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        path = DOCS / name
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.exit(f"docs/{name} is not what the code says; run `python docs/reference.py`")


def help_page() -> str:
    """What each command says with `--help`, in a terminal of 80 columns."""
    group = typer.main.get_command(app)
    parts = ["# Help of the commands\n", "What `nemo-edge COMMAND --help` says, written by `python docs/reference.py`.\n"]
    for panel, examples in EXAMPLES.items():
        parts.append(f"## {panel}\n")
        for name in examples:
            command = group.get_command(typer.Context(group), name)  # type: ignore[attr-defined]
            context = typer.Context(
                command, info_name=f"nemo-edge {name}", terminal_width=80, max_content_width=80, help_option_names=["-h", "--help"]
            )
            parts.append(f"### {name}\n\n```text\n{command.get_help(context)}\n```\n")
    return "\n".join(parts)


def recipe_page(schema: Mapping[str, Any]) -> str:
    """The whole page: a heading for each table, and a row for each of its settings."""
    settings = list(settings_of(schema))
    tables = {f"{s.table}.{s.name}".removeprefix("."): s for s in settings}
    parts = [HEAD]
    for table, found in groupby(sorted(settings, key=lambda s: (s.table != "", list(tables).index(s.table) if s.table else 0)), key=_table):
        if table:
            parts.append(f"## {_heading(table, tables[table].schema)}\n\n{tables[table].schema['description']}\n")
        rows = [f"| `{s.name}` | {_kind(s)} | {_default(s)} | {_cell(s.schema['description'])} |" for s in found if not _is_table(s)]
        parts.append("\n".join(["| setting | values | default | what it is |", "|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _table(setting: Setting) -> str:
    return setting.table


def _heading(table: str, schema: Mapping[str, Any]) -> str:
    return f"`[[{table}]]`, as many as wanted" if schema.get("type") == "array" else f"`[{table}]`"


def _is_table(setting: Setting) -> bool:
    return "$ref" in setting.schema or "$ref" in setting.schema.get("items", {})


def _kind(setting: Setting) -> str:
    return _cell(_words(setting.schema))


def _words(schema: Mapping[str, Any]) -> str:
    """What values a setting takes."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_words, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if schema["type"] == "array":
        count = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        return f"list of {f'{count} ' if count else ''}({_words(schema.get('items', {'type': 'string'}))})"
    if schema["type"] == "boolean":
        return "`true`, `false`"
    word = {"integer": "whole number", "number": "number", "string": "path" if schema.get("format") == "path" else "text"}[schema["type"]]
    return word + _range(schema)


def _range(schema: Mapping[str, Any]) -> str:
    limits = {
        "minimum": "≥ {}",
        "exclusiveMinimum": "> {}",
        "maximum": "≤ {}",
        "exclusiveMaximum": "< {}",
        "multipleOf": "multiple of {}",
    }
    said = [text.format(f"{schema[name]:g}") for name, text in limits.items() if name in schema]
    return f", {', '.join(said)}" if said else ""


def _default(setting: Setting) -> str:
    if setting.required:
        return "**must be given**"
    value = setting.schema.get("default")
    return "" if value is None else f"`{_cell(json.dumps(value, ensure_ascii=False))}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    main()
