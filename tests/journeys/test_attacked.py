"""A build that attacks itself: a stage, a file, gates and levels in its report, all of them of the neurons that it was made with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.measure.attacks.campaign import Campaign
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import AttackSettings
from nemo_edge.release.build import build, plan
from nemo_edge.release.rebake import rebake
from nemo_edge.report.evidence import Evidence
from nemo_edge.system.errors import InputError


@pytest.fixture(scope="module")
def recipe(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The tiny recipe with a training picture of its first prompt, a control, and what was built of it before."""
    folder = tmp_path_factory.mktemp("attacked") / "tiny"
    shutil.copytree(tiny_bundle.parent, folder)
    (folder / "unseen").mkdir()
    for seed, name in enumerate(("a", "unseen/b")):
        pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "memorized.csv").write_text("Caption;URL;image\na red pig;u;a.png\n<script>alert(1)</script> owl;v;\nthird;w;\n")
    attack = AttackSettings(
        controls=folder / "unseen", limit=1, text=("random tokens", "greedy search"), batches=6, candidates=3, variants=2, steps=1, seeds=1
    )
    return load_recipe(folder / "recipe.toml").model_copy(update={"attack": attack})


def test_a_build_attacks_itself_and_says_what_came_back_by_level(recipe: Recipe) -> None:
    assert plan(recipe).done[-1] != "attack"
    result = build(recipe)
    bundle = Path(result.bundle)
    found = Campaign.read(bundle)
    assert found is not None
    assert [(each.group, each.way) for each in found.attacked] == [
        ("unmitigated", "greedy search"),
        ("memories", "random tokens"),
        ("memories", "greedy search"),
        ("never seen", "greedy search"),
        ("unmitigated", "unrelated"),
        ("memories", "prompt"),
        ("never seen", "unrelated"),
    ]
    assert found.neurons_hash == result.manifest.neurons_hash
    assert [switch.name for switch in found.switches][:2] == ["a value_mask of ones", "the policy off"]
    gate = next(gate for gate in result.manifest.gates if gate.name == "attack_text")
    level = found.level("text")
    assert level is not None
    assert gate.value == (level.memories.returned if level.strong or level.memories.returned else None)
    assert "attack.json" in result.manifest.files
    assert "attack.jsonl" not in result.manifest.files
    report = json.loads((bundle / "report" / "report.json").read_text())
    assert [each["attack"] for each in report["attack"]["levels"]] == ["text", "embedding"]
    assert build(recipe).skipped
    fewer = recipe.model_copy(update={"attack": recipe.attack and recipe.attack.model_copy(update={"seed": 1})})
    assert "measure" in plan(fewer).done
    assert "attack" not in plan(fewer).done


def test_other_neurons_were_not_attacked(recipe: Recipe, tmp_path: Path) -> None:
    """Neither the report nor a gate takes what was found with others silenced."""
    built = Path(build(recipe).bundle)
    bundle = shutil.copytree(built, built.with_name("copy"))
    own = NeuronSet.load(bundle / "neurons.json")
    NeuronSet.from_lists(own.layers, [[0] for _ in own.layers]).save(tmp_path / "others.json")
    rebake(bundle, tmp_path / "others.json", measure=True)
    evidence = Evidence.read(bundle)
    assert evidence.attack is None
    gate = next(gate for gate in evidence.gates if gate.name == "attack_text")
    assert (gate.value, gate.detail) == (None, "not attacked since its neurons were changed")


def test_inputs_that_cannot_be_attacked_are_refused_before_the_work(recipe: Recipe) -> None:
    assert recipe.attack is not None
    without = recipe.model_copy(update={"attack": recipe.attack.model_copy(update={"controls": None})})
    with pytest.raises(InputError, match="no folder of control pictures is given"):
        plan(without)
    unknown = recipe.model_copy(update={"attack": recipe.attack.model_copy(update={"limit": None})})
    with pytest.raises(InputError, match="no training picture is known for 1 of 2 prompts"):
        plan(unknown)
