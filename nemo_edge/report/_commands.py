"""How a reader verifies a bundle and makes it again: commands with its own names, and no place of the machine that built it.

Knows the recipe and the options of the command line; runs nothing.
"""

from __future__ import annotations

__all__ = ["Command", "commands_of"]

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from nemo_edge.report._identity import base_model, model_name
from nemo_edge.report.evidence import Evidence

_FOLDER = "FOLDER"
"""Stands for control pictures that nobody has named."""


@dataclass(frozen=True)
class Command:
    """One line for a shell."""

    line: str
    does: str


def commands_of(evidence: Evidence) -> tuple[Command, Command, Command]:
    """Return three lines: verify, build, attack. They are run where bundle, recipe, prompts and checkpoint lie side by side."""
    file, assumed = evidence.facts.get("Recipe file", f"{evidence.name}.toml"), "Recipe file" not in evidence.facts
    controls = "" if _controls(evidence) else f"; {_FOLDER} holds pictures like the training pictures that the model never saw"
    recipe = "; its recipe's file is not known, the settings are at the end of the page" if assumed else ""
    return (
        Command(_line("verify", evidence.name), "every file of the bundle against the hashes in its manifest"),
        Command(
            _line("build", file),
            f"a bundle of the recipe; the same identity means the same model{recipe}",
        ),
        Command(_line("attack", evidence.name, *_attack(evidence)), f"what comes back under attack, tried by you{controls}"),
    )


def _attack(evidence: Evidence) -> Iterator[str]:
    recipe = evidence.recipe
    yield from ("--prompts", recipe.prompts.memorized.name)
    if base_model(recipe.checkpoint.path) is None:
        yield from ("--checkpoint", model_name(recipe.checkpoint.path))
    yield from ("--controls", _controls(evidence) or _FOLDER)
    if recipe.attack is not None and recipe.attack.limit is not None:
        yield from ("--limit", str(recipe.attack.limit))
    yield from ("-o", "attack.json")


def _controls(evidence: Evidence) -> str:
    attack = evidence.recipe.attack
    return attack.controls.name if attack and attack.controls else ""


def _line(*words: str) -> str:
    return shlex.join(("nemo-edge", *words))
