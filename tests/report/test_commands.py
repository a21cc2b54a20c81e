"""Three lines that a reader can type: the command line takes them, and no place of the machine that built the bundle is in them."""

from __future__ import annotations

import shlex
from pathlib import Path

from click import Command as Click
from typer.main import get_command

from nemo_edge.cli.main import app
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import AttackSettings, CheckpointSettings, PromptSettings
from nemo_edge.report._commands import commands_of
from nemo_edge.report._page import page_html
from nemo_edge.report._record import record
from nemo_edge.report.thumbnails import Gallery
from report.test_evidence import evidence, recipe

PLACE = "/home/builder/secret"


def placed(checkpoint: str = f"{PLACE}/sd 14") -> Recipe:
    prompts = PromptSettings(memorized=Path(PLACE) / "list's.csv", general=Path(PLACE) / "general.txt")
    attack = AttackSettings(controls=Path(PLACE) / "unseen", limit=4)
    return recipe().model_copy(update={"prompts": prompts, "attack": attack, "checkpoint": CheckpointSettings(path=checkpoint)})


def test_they_name_this_bundle_and_its_recipe_and_no_place() -> None:
    lines = [command.line for command in commands_of(evidence(recipe=placed(), facts={"Recipe file": "sd14.toml"}))]
    attack = "nemo-edge attack toy --prompts 'list'\"'\"'s.csv' --checkpoint 'sd 14' --controls unseen --limit 4 -o attack.json"
    assert lines == ["nemo-edge verify toy", "nemo-edge build sd14.toml", attack]
    assert "--checkpoint" not in commands_of(evidence(recipe=placed("CompVis/sd")))[2].line


def test_controls_that_nobody_named_are_said() -> None:
    _, _, attack = commands_of(evidence())
    assert "--controls FOLDER" in attack.line
    assert "FOLDER holds pictures like the training pictures that the model never saw" in attack.does
    assert "FOLDER" not in commands_of(evidence(recipe=placed()))[2].does


def test_a_recipe_whose_file_is_not_known_is_said_to_be_assumed() -> None:
    _, build, _ = commands_of(evidence(facts={}))
    assert build.line == "nemo-edge build toy.toml"
    assert "not known" in build.does
    assert "not known" not in commands_of(evidence(facts={"Recipe file": "other.toml"}))[1].does


def test_the_command_line_takes_them() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    for command in commands_of(evidence(recipe=placed())):
        program, name, *words = shlex.split(command.line)
        assert program == "nemo-edge"
        click: Click = commands[name]
        context = click.make_context(name, list(words), resilient_parsing=False)
        assert context.params


def test_the_page_and_the_json_have_them() -> None:
    made = evidence(recipe=placed(), facts={})
    page = page_html(made, Gallery({}, {}, {}))
    assert "<code>nemo-edge verify toy</code>" in page
    assert "list&#39;&#34;&#39;&#34;&#39;s.csv" in page
    assert PLACE not in page[: page.index('<section id="provenance">')]
    assert record(made).commands == tuple(command.line for command in commands_of(made))
