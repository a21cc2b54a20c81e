"""Whose a bundle is: names on one line, which no result hangs on."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from nemo_edge.recipe.authorship import ReportSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.system.errors import InputError

RECIPE = """name = "toy"
output = "out"
checkpoint = {path = "c"}
prompts = {memorized = "m", general = "g"}
[report]
"""


def read(folder: Path, table: str) -> Recipe:
    (folder / "toy.toml").write_text(RECIPE + table)
    return load_recipe(folder / "toy.toml")


def test_a_recipe_says_whose_it_is(tmp_path: Path) -> None:
    assert read(tmp_path, 'author = "Ada Lovelace <ada@example.org>"\norganisation = "Analytical Engines"').report == ReportSettings(
        author="Ada Lovelace <ada@example.org>", organisation="Analytical Engines"
    )
    assert read(tmp_path, "").report == ReportSettings()


def test_an_unknown_key_is_named_with_the_right_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"did you mean 'report\.organisation'"):
        read(tmp_path, 'organization = "x"')


@pytest.mark.parametrize("name", ["", "   ", "two\nlines", "a\x00", "x" * 201])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        ReportSettings(author=name)
