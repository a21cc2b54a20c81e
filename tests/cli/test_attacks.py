"""The command line of an attack: one object, a table of 80 columns, and refusals in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from release.test_random_weights import small

from cli.test_main import Ran, Run, assert_refused, assert_refused_last_line, run
from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.recipe.recipe import Recipe, anchored
from nemo_edge.release.random_weights import write_random

__all__ = ["run"]


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """A list of one prompt with a dark training picture, a light control, and an empty folder."""
    for name in ("controls", "empty"):
        (tmp_path / name).mkdir()
    for name, level in (("a", 10), ("controls/b", 240)):
        Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("Caption;image\na red pig;a.png\n")
    (tmp_path / "unknown.csv").write_text("Caption\na red pig\n")
    return tmp_path


def attack_on(run: Run, source: Path, known: Path, *more: object, prompts: str = "list.csv", controls: str = "controls") -> Ran:
    files = ("--prompts", known / prompts, "--controls", known / controls, "--output", known / "attack.json")
    return run("attack", source, *files, *more)


def test_an_attack_prints_one_object_and_a_table_of_80_columns(
    run: Run, monkeypatch: pytest.MonkeyPatch, known: Path, toy_folder: Path, tiny_recipe: Path
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = ("--recipe", tiny_recipe, "--steps", 1, "--seeds", 1, "--batches", 2, "--start", "noise", "--start", "unrelated")
    ran = attack_on(run, toy_folder, known, *options, "--json")
    assert ran.code == 0
    assert json.loads(ran.out) == json.loads((known / "attack.json").read_text())
    assert json.loads(ran.out)["settings"]["starts"] == ["noise", "unrelated"]
    again = attack_on(run, toy_folder, known, *options)
    assert max(len(line) for line in again.out.splitlines() if not line.startswith("written to")) <= 80
    assert "never seen" in again.out


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"prompts": "unknown.csv"}, "no training picture is known for 1 of 1 prompts ('a red pig')"),
        ({"controls": "empty"}, "holds no picture"),
        ({"controls": "none"}, "does not exist"),
    ],
)
def test_an_attack_without_pictures_is_refused(run: Run, known: Path, toy_folder: Path, files: dict[str, str], reason: str) -> None:
    assert_refused(attack_on(run, toy_folder, known, **files), reason)
    assert not (known / "attack.json").exists()


def test_a_control_that_the_model_has_seen_is_refused(run: Run, known: Path, toy_folder: Path, tiny_recipe: Path) -> None:
    shutil.copy(known / "a.png", known / "controls" / "c.png")
    ran = attack_on(run, toy_folder, known, "--recipe", tiny_recipe)
    assert_refused_last_line(ran, "c.png is the training picture", "a.png", "take it out of the folder")


def test_a_start_that_is_none_is_refused_by_its_option(run: Run, known: Path, toy_folder: Path) -> None:
    assert_refused(attack_on(run, toy_folder, known, "--start", "end"), "--start")


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        (("--only", "text", "--start", "noise"), ("--only text leaves out what --start asks for", "give one of the two")),
        (("--only", "embedding", "--text", "paraphrases"), ("--only embedding leaves out what --text asks for",)),
        (("--only", "both"), ("--only both: give text or embedding",)),
        (("--smoke",), ("--smoke attacks random weights", "leave out --prompts")),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    run: Run, known: Path, toy_folder: Path, options: tuple[str, ...], reasons: tuple[str, ...]
) -> None:
    assert_refused(attack_on(run, toy_folder, known, *options), *reasons)


def test_a_checkpoint_is_not_attacked_without_a_list(run: Run, toy_folder: Path, tmp_path: Path) -> None:
    assert_refused(run("attack", toy_folder, "-o", tmp_path / "a.json"), "--prompts is missing")


def test_a_bundle_is_attacked_as_its_own_recipe_says_but_for_what_is_given(run: Run, known: Path, tiny_bundle: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, known / "bundle")
    manifest = open_bundle(bundle)
    attack = {"controls": "../controls", "limit": 1, "text": (), "starts": ("noise",), "steps": 3, "seeds": 1}
    own = {**manifest.recipe, "attack": attack, "prompts": {**manifest.recipe["prompts"], "memorized": "../list.csv"}}
    source = anchored(Recipe.model_validate(manifest.recipe), tiny_bundle).checkpoint
    own["checkpoint"] = source.model_dump(mode="json")
    (bundle / "manifest.json").write_text(manifest.model_copy(update={"recipe": own}).model_dump_json())
    ran = run("attack", bundle, "-o", known / "attack.json", "--steps", 1, "--json")
    settings = json.loads(ran.out)["settings"]
    assert (settings["starts"], settings["steps"], settings["limit"]) == (["noise"], 1, 1)
    assert {each["way"] for each in json.loads(ran.out)["attacked"]} == {"noise", "unrelated"}


def test_an_attack_is_walked_through_with_random_weights(run: Run, tmp_path: Path) -> None:
    own = small(tmp_path / "own", "sd15")
    ran = run("attack", own, "--smoke", "--only", "embedding", "--start", "noise", "-o", tmp_path / "smoke.json")
    assert ran.code == 0
    assert "7 attacks ran on own" in ran.out
    assert "Nothing is claimed of random weights" in ran.out
    again = run("attack", own, "--smoke", "--only", "embedding", "-o", tmp_path / "smoke.json", "--json")
    assert json.loads(again.out) == json.loads((tmp_path / "smoke.json").read_text())


def test_random_weights_are_not_attacked_without_smoke(run: Run, known: Path) -> None:
    folder = write_random(small(known / "own", "sd15"), known / "random")
    assert_refused(attack_on(run, folder, known), "carries random weights (own)", "--smoke")


@pytest.mark.parametrize("own", [("--clip-skip", 1), ("--neurons", "neurons.json")])
def test_what_a_bundle_says_itself_is_not_asked_for(run: Run, known: Path, tiny_bundle: Path, own: tuple[object, ...]) -> None:
    assert_refused(attack_on(run, tiny_bundle, known, *own), f"{own[0]} is for a checkpoint", "leave it out")


def test_an_attack_on_random_weights_is_refused(run: Run, known: Path, tiny_bundle: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, known / "bundle")
    random = open_bundle(bundle).model_copy(update={"random_weights": "sd15"})
    (bundle / "manifest.json").write_text(random.model_dump_json())
    assert_refused(attack_on(run, bundle, known), "carries random weights (sd15)")
