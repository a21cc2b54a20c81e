"""ONNX files and engines of a whole checkpoint: what is refused before the work, and what is made."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from nemo_edge.export import production
from nemo_edge.export.production import OnnxFile, export_folder, neurons_stage, plan_stage, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.random_weights import RandomSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import ExportSettings
from nemo_edge.recipe.targets import TensorRtRtxSettings
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Progress


@pytest.fixture
def recipe(tiny_recipe: Path) -> Recipe:
    return load_recipe(tiny_recipe)


def test_a_folder_that_is_not_empty_is_left_alone(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="is not empty"):
        export_folder(recipe.checkpoint, ExportSettings(), None, "paper", tmp_path, Progress())
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_value_layers_are_the_same_from_a_process_of_their_own(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    here = value_layers(recipe.checkpoint, "all", Progress())
    assert not production.is_large(recipe.checkpoint)
    monkeypatch.setattr(production, "_LARGE_BYTES", 0)
    assert production.is_large(recipe.checkpoint)
    assert value_layers(recipe.checkpoint, "all", Progress()) == here
    assert [layer.width for layer in here] == [8, 8, 8, 8]


def test_neurons_are_drawn_from_the_seed_or_read_from_a_file(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(production, "_RANDOM_NEURONS", 5)

    def drawn(name: str, **settings: object) -> NeuronSet:
        (tmp_path / name).mkdir()
        chosen = RandomSettings.model_validate({"architecture": "sd15", **settings})
        neurons_stage(recipe.checkpoint, chosen, "paper", tmp_path / name, Progress())
        return NeuronSet.load(tmp_path / name / "neurons.json")

    first = drawn("first")
    assert len(first) == 5
    assert first == drawn("again")
    assert first != drawn("other", seed=1)
    assert drawn("given", neurons=tmp_path / "other" / "neurons.json", seed=7) == NeuronSet.load(tmp_path / "other" / "neurons.json")


@pytest.mark.parametrize("components", [None, ("unet", "vae_decoder")])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_part_that_is_not_in_fp16_is_not_compiled_for_turing(
    tmp_path: Path, components: tuple[str, ...] | None, dtype: Literal["fp32", "bf16"]
) -> None:
    files = [OnnxFile("unet/model.onnx", "fp16"), OnnxFile("vae_decoder/model.onnx", dtype)]
    settings = TensorRtRtxSettings(targets=("sm75", "sm86"), components=components)
    said = rf"no {dtype} for sm75 \(Turing\), and vae_decoder is {dtype}: leave vae_decoder out of tensorrt_rtx.components, or"
    with pytest.raises(InputError, match=said):
        plan_stage(tmp_path, files, settings, "tensorrt-rtx", tmp_path / "plans", Progress())
    assert list(tmp_path.iterdir()) == []
