"""A build that hardens: its engines have the hardened weights, everything is held against these, and the control against the checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nemo_edge.backends.onnxruntime import open_runner
from nemo_edge.hardening.harden import Hardened
from nemo_edge.measure.attacks.campaign import Campaign, attack
from nemo_edge.measure.attacks.subject import Place
from nemo_edge.measure.comparison import Question, compare
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.recipe.hardening import HardeningSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import AttackSettings, CheckpointSettings
from nemo_edge.release._cache import cache_of
from nemo_edge.release.build import build, plan
from nemo_edge.release.rebake import rebake
from nemo_edge.system.errors import InputError

WAYS = AttackSettings(limit=1, text=(), steps=1, seeds=1)


@pytest.fixture(scope="module")
def recipe(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The tiny recipe with training pictures of its prompts, a control, two rounds of hardening and one of attack."""
    folder = shutil.copytree(tiny_bundle.parent, tmp_path_factory.mktemp("hardened") / "tiny")
    (folder / "unseen").mkdir()
    for seed, name in enumerate(("a", "c", "unseen/b")):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "memorized.csv").write_text("Caption;URL;image\na red pig;u;a.png\n<script>alert(1)</script> owl;v;c.png\nthird;w;\n")
    (folder / "recipe.toml").write_text(
        (folder / "recipe.toml").read_text() + '[export]\nvariants = ["baked"]\n[hardening]\nrounds = 2\nattack_steps = 1\nsurrogates = 1\n'
    )
    settings = WAYS.model_copy(update={"controls": folder / "unseen"})
    return load_recipe(folder / "recipe.toml").model_copy(update={"attack": settings, "output": folder / "hardened"})


@pytest.fixture(scope="module")
def bundle(recipe: Recipe) -> Path:
    return Path(build(recipe).bundle)


@pytest.fixture(scope="module")
def weights(bundle: Path) -> Path:
    """The hardened checkpoint that the build left."""
    (folder,) = cache_of(bundle).glob("harden-*/checkpoint")
    return folder


def test_the_engines_have_the_hardened_weights_and_are_held_against_them(recipe: Recipe, bundle: Path, weights: Path) -> None:
    hardened, plain = open_checkpoint(str(weights)), open_checkpoint(recipe.checkpoint.path)
    _, height, width = hardened.config.latent_shape
    feed = {
        "sample": np.random.default_rng(0).standard_normal((1, 4, height, width), np.float32),
        "timestep": np.array([500], np.float32),
        **{name: value.numpy() for name, value in hardened.encode(["a red pig"]).items()},
    }
    with open_runner(bundle / "unet" / "model.onnx") as engine, torch.no_grad():
        got = engine(feed)["out_sample"]
        own, other = (c.unet_component().module(*map(torch.from_numpy, feed.values()))[0].numpy() for c in (hardened, plain))
    np.testing.assert_allclose(got, own, atol=1e-4)
    assert np.abs(got - other).max() > 1e-4
    assert Measurement.read(bundle).variants[0].trajectory.largest_error < 1e-3


def test_the_bundle_says_that_its_weights_changed_and_how(recipe: Recipe, bundle: Path, weights: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["hardened"] == open_checkpoint(str(weights)).files
    assert manifest["checkpoint"] == open_checkpoint(recipe.checkpoint.path).files
    found = Hardened.model_validate_json((bundle / "hardening.json").read_bytes())
    assert (len(found.rounds), found.neurons_hash) == (2, manifest["neurons_hash"])
    assert "hardening.json" in manifest["files"]
    assert not (bundle / "checkpoint").exists()
    assert not list(bundle.rglob("silenced_rows.safetensors")), "hardened rows are zero: nothing is there to be put back"
    assert "2 rounds of hardening" in (bundle / "report" / "model_card.md").read_text()
    assert "Hardened weights" in (bundle / "report" / "index.html").read_text()


def test_a_second_build_does_nothing_and_other_rounds_are_another_bundle(recipe: Recipe, bundle: Path) -> None:
    assert build(recipe).skipped
    assert recipe.hardening is not None
    more = recipe.model_copy(update={"hardening": recipe.hardening.model_copy(update={"rounds": 3})})
    assert "localize" in plan(more).done
    assert not {"harden", "export", "measure", "attack"} & set(plan(more).done)


def test_the_attack_is_on_the_hardened_weights_and_its_control_on_the_checkpoint(bundle: Path) -> None:
    found = Campaign.read(bundle)
    assert found is not None
    losses = {each.group: each.attempts[0].loss for each in found.attacked if each.way == "unrelated" or each.group == "memories"}
    assert set(losses) == {"unmitigated", "memories", "never seen"}
    assert not found.switches


def test_a_finished_bundle_is_attacked_with_its_hardened_checkpoint(recipe: Recipe, bundle: Path, weights: Path, tmp_path: Path) -> None:
    built, settings = Campaign.read(bundle), recipe.attack
    assert built is not None
    assert settings is not None
    place = Place(CheckpointSettings(path=str(bundle)), hardened=str(weights))
    again = attack(place, recipe.prompts.memorized, settings, tmp_path / "attack.json")
    assert again.attacked == built.attacked
    with pytest.raises(InputError, match="were hardened: pass --hardened"):
        attack(Place(CheckpointSettings(path=str(bundle))), recipe.prompts.memorized, settings, tmp_path / "other.json")
    with pytest.raises(InputError, match="is not the checkpoint whose weights"):
        attack(replace(place, hardened=recipe.checkpoint.path), recipe.prompts.memorized, settings, tmp_path / "other.json")


def test_a_bundle_is_compared_with_the_hardened_checkpoint(recipe: Recipe, bundle: Path, weights: Path) -> None:
    question = Question(prompts=("a red pig",), steps=1)
    assert compare(str(weights), str(bundle), question).passed
    with pytest.raises(InputError, match="not of the same checkpoint"):
        compare(recipe.checkpoint.path, str(bundle), question)


def test_no_neuron_comes_back(bundle: Path) -> None:
    with pytest.raises(InputError, match="were hardened with its neurons silenced, so that none come back: build it again"):
        rebake(bundle, bundle / "neurons.json")


def test_what_does_not_go_together_is_refused_before_the_work(recipe: Recipe, tiny_recipe: Path) -> None:
    text = tiny_recipe.read_text() + "[hardening]\n"
    other = tiny_recipe.with_name("both.toml")
    other.write_text(text)
    with pytest.raises(InputError, match=r'a masked engine lets neurons back: set export.variants = \["baked"\]'):
        load_recipe(other)
    third = recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"limit": None}), "attack": None})
    with pytest.raises(InputError, match="no training picture is known for 1 of 3 prompts"):
        plan(third.model_copy(update={"hardening": HardeningSettings()}))


def test_a_build_that_was_killed_after_its_hardening_does_not_harden_again(recipe: Recipe, bundle: Path, weights: Path) -> None:
    """Killed before the stage was recorded as done: its checkpoint, which appears whole, is taken."""
    (weights.parent / "stage.json").unlink()
    before = (weights / "hardening.json").stat().st_mtime_ns
    assert not build(recipe.model_copy(update={"name": "again"})).skipped
    assert (weights / "hardening.json").stat().st_mtime_ns == before
    assert (weights.parent / "stage.json").is_file()
