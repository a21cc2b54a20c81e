"""ONNX files and engines of a whole checkpoint: what is refused before the work, and what is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.errors import InputError
from nemo_edge.production import export_folder
from nemo_edge.progress import Progress
from nemo_edge.recipe import ExportSettings, Recipe, load_recipe


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


def test_a_folder_that_is_not_empty_is_left_alone(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        export_folder(recipe.checkpoint, ExportSettings(), None, "paper", tmp_path, Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
