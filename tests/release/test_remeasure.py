"""A bundle whose neurons were changed, measured again: by its own prompts and weights, and told as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from model.test_loras import VALUE, pair
from safetensors.torch import save_file
from traces import traces

from nemo_edge.bundle.manifest import open_bundle, open_verified
from nemo_edge.cli import console
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.checkpoint import open_parts
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import value_rows
from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.settings import LoraSettings
from nemo_edge.release._remeasure import open_sources, original_rows
from nemo_edge.release.rebake import rebake
from nemo_edge.release.review import report_again
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import checkpoint_hashes, sha256_file

OTHERS = [[1, 6], [0, 2, 3]]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def saved(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A set of the bundle's layers in a file."""

    def save(lists: list[list[int]]) -> Path:
        NeuronSet.from_lists(NeuronSet.load(tiny_bundle / "neurons.json").layers, lists).save(tmp_path / "new.json")
        return tmp_path / "new.json"

    return save


def hashes(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def test_prompts_that_have_changed_are_not_those_of_the_bundle(tiny_bundle: Path) -> None:
    manifest = open_bundle(tiny_bundle)
    name = next(iter(manifest.prompts))
    with pytest.raises(InputError, match="has changed since: build the bundle again"):
        open_sources(tiny_bundle, manifest.model_copy(update={"prompts": {**manifest.prompts, name: "0" * 64}}))


def test_random_weights_have_nothing_to_measure(bundle: Path) -> None:
    with pytest.raises(InputError, match="nothing to measure: leave --measure out"):
        open_sources(bundle, open_bundle(bundle).model_copy(update={"random_weights": "sd15"}))


def test_what_a_bundle_was_made_from_moves_with_it(tiny_bundle: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_recipe.parent, tmp_path / "elsewhere", ignore=shutil.ignore_patterns(".out.build"))
    moved = tmp_path / "elsewhere" / "out"
    recipe = open_sources(moved, open_bundle(moved)).recipe
    found = (Path(recipe.checkpoint.path), recipe.prompts.memorized, recipe.prompts.general)
    assert [p.resolve() for p in found] == [moved.parent / name for name in ("model", "memorized.csv", "general.txt")]


def test_a_bundle_that_moved_alone_is_told_where_its_sources_are(bundle: Path, tiny_recipe: Path) -> None:
    manifest, recipe = open_bundle(bundle), load_recipe(tiny_recipe)
    with pytest.raises(InputError, match=r"checkpoint .*model does not exist.*; pass --checkpoint, or --recipe, the recipe that"):
        open_sources(bundle, manifest)
    with pytest.raises(InputError, match=r"memorized\.csv, which the bundle was made from, does not exist: pass --recipe, the recipe that"):
        open_sources(bundle, manifest, recipe.checkpoint.path)
    beyond = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"limit": 1})})
    found = open_sources(bundle, manifest, places=beyond)
    assert found.recipe.checkpoint.path == recipe.checkpoint.path
    assert len(found.inputs.memorized) == 2  # as many as the bundle was built with


def test_loras_are_looked_for_where_the_recipe_has_them(bundle: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    save_file(pair(f"lora_unet_{VALUE}", 16, 8), tmp_path / "mine.safetensors")
    places, manifest = load_recipe(tiny_recipe), open_bundle(bundle)
    source = places.checkpoint.model_copy(update={"loras": (LoraSettings(path=tmp_path / "mine.safetensors"),)})
    places, neurons = places.model_copy(update={"checkpoint": source}), NeuronSet.load(bundle / "neurons.json")
    recipe = {
        **manifest.recipe,
        "checkpoint": {**manifest.recipe["checkpoint"], "loras": [{"path": "gone/mine.safetensors", "scale": 1.0}]},
    }
    manifest = manifest.model_copy(update={"recipe": recipe, "checkpoint": checkpoint_hashes(source.path, source.fused)})
    remedy = r"LoRA .*gone/mine\.safetensors, which the bundle was made from, does not exist: pass --recipe, the recipe"
    for find in (lambda: open_sources(bundle, manifest, source.path), lambda: original_rows(bundle, manifest, neurons, source.path)):
        with pytest.raises(InputError, match=remedy):
            find()
    assert open_sources(bundle, manifest, places=places).recipe.checkpoint.loras == source.loras
    found = original_rows(bundle, manifest, neurons, source.path, places)
    expected, without = (
        value_rows(open_parts(s, ("unet",)).unet, neurons, torch.float32) for s in (source, load_recipe(tiny_recipe).checkpoint)
    )
    assert all(np.array_equal(rows, expected[name]) for name, rows in found.items())
    assert any(not np.array_equal(rows, without[name]) for name, rows in found.items())


def test_measured_again_the_bundle_says_what_its_new_neurons_do(
    bundle: Path, saved: Callable[..., Path], toy_folder: Path, tiny_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, places = hashes(bundle), load_recipe(tiny_recipe)
    with pytest.raises(InputError, match="is not the checkpoint that this bundle was made from"):
        rebake(bundle, saved(OTHERS), measure=True, checkpoint=str(toy_folder), places=places)
    assert hashes(bundle) == before
    unmeasured = rebake(bundle, saved(OTHERS))
    console.show_rebaked(unmeasured)
    assert max(map(len, capsys.readouterr().out.splitlines()[:6])) <= 80
    found = rebake(bundle, bundle / "neurons.json", measure=True, places=places)
    assert (found.changed, found.measured) == (False, True)
    manifest, measurement = open_verified(bundle), Measurement.read(bundle)
    assert (manifest.measured, manifest.gates, measurement.neurons) == (True, found.gates, 5)
    assert {name for name in manifest.files if name.startswith("report/pictures")}
    assert "but others were chosen: 5 neurons are silenced" in (bundle / "report" / "index.html").read_text()
    assert max(v.trajectory.largest_error for v in measurement.variants) < 1e-4
    assert report_again(bundle).is_file()
    assert list(traces(bundle, bundle.parent, tiny_recipe.parent)) == []
