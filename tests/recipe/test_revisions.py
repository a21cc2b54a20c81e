"""Revisions of hub ids: written in a recipe, part of the path from then on, and for hub ids alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from nemo_edge.recipe.recipe import kept_recipe, load_recipe
from nemo_edge.recipe.revisions import hub_id, with_revision
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.system.errors import InputError

COMMIT = "ab" * 20
RECIPE = """
name = "x"
output = "out"
[checkpoint]
path = "owner/name"
revision = "v1.0"
[prompts]
memorized = "m.csv"
general = "g.txt"
"""


def test_a_revision_is_part_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.checkpoint.path == "owner/name@v1.0"
    assert kept_recipe(recipe.model_dump(mode="json"), tmp_path) == recipe
    assert hub_id(recipe.checkpoint.path) == ("owner/name", "v1.0")


def test_a_folder_beside_the_recipe_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(InputError, match=r"checkpoint.revision v1.0 pins a hub id, and .*owner/name is here: leave it out"):
        load_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize("path", ["./name", "/models/sd", "~/sd", "model.safetensors", "a/b/c", "owner/name@main", ""])
def test_only_a_hub_id_without_one_takes_a_revision(path: str) -> None:
    with pytest.raises(ValidationError, match="pins a hub id, owner/name"):
        CheckpointSettings.model_validate({"path": path, "revision": COMMIT})


@pytest.mark.parametrize("revision", ["", "../../etc", "a b", "-x", "a..b", "x" * 300, "a\nb"])
def test_what_is_no_revision_is_refused(revision: str) -> None:
    with pytest.raises(ValueError, match="is none: give a commit, a tag or a branch of owner/name"):
        with_revision("owner/name", revision)
    with pytest.raises(ValidationError):
        CheckpointSettings.model_validate({"path": "owner/name", "revision": revision})


def test_other_types_are_told_as_such() -> None:
    with pytest.raises(ValidationError, match="Input should be a valid string"):
        CheckpointSettings.model_validate({"path": "owner/name", "revision": 3})
    assert CheckpointSettings(path="owner/name", revision=None).path == "owner/name"
    assert [hub_id(path) for path in ("owner/name", "./name", "model.ckpt")] == [("owner/name", ""), None, None]
