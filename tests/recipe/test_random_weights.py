"""The settings of random weights: what they are called, wherever their architecture lies."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from nemo_edge.recipe.random_weights import RandomSettings


def test_a_folder_gives_its_name_and_not_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RandomSettings(architecture="sdxl").name == "sdxl"
    assert RandomSettings(architecture=str(tmp_path / "mine")).name == "mine"
    assert RandomSettings(architecture="./mine/").name == "mine"


def test_an_architecture_must_be_given() -> None:
    with pytest.raises(ValidationError, match="architecture"):
        RandomSettings.model_validate({"seed": 1})
