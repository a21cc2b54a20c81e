"""What a bundle is: whose, of which weights, prompts and neurons, by which versions, where and when it was built.

Knows the facts of the evidence; nothing of HTML. A fact that is not known has no row.
"""

from __future__ import annotations

__all__ = ["IDENTIFYING", "Row", "base_model", "identity_of", "model_name"]

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nemo_edge.recipe.revisions import hub_id
from nemo_edge.report._numbers import joined, moment
from nemo_edge.report.evidence import Evidence
from nemo_edge.system.environment import Machine
from nemo_edge.system.reading import expanded

_HASHES = (
    (
        "Identity",
        "sha256 over every file but what was measured, times and this report, as nemo-edge verify BUNDLE prints it. It says which model "
        "this is, and not who made it: that is what a signature says (nemo-edge verify BUNDLE --public-key KEY)",
    ),
    ("Weights", "sha256 over the sha256 of each file of the checkpoint"),
    ("Hardened weights", "the same of the checkpoint that hardening made of it"),
    ("Prompts", "sha256 of the list of memorized prompts"),
    ("Neurons", "sha256 of what is silenced"),
    ("Build key", "sha256 over all that the bundle was made from"),
)

IDENTIFYING = (*(name for name, _ in _HASHES), "Threshold τ", "Recipe file")
"""Facts that have rows here, beside versions."""


@dataclass(frozen=True)
class Row:
    """One thing that tells this bundle from another."""

    name: str
    value: str
    note: str = ""
    """What the value is taken of."""
    code: bool = False
    """Whether the value is to be copied, not read."""


def identity_of(evidence: Evidence) -> tuple[Row, ...]:
    """Return the rows, those that people ask for first at the top."""
    return tuple(_rows(evidence))


def base_model(checkpoint: str) -> str | None:
    """Return the hub id that a recipe's checkpoint is, without its revision; None for a folder or a file."""
    local = checkpoint.endswith((".safetensors", ".ckpt")) or expanded(checkpoint).exists()
    named = hub_id(checkpoint)
    return named[0] if named is not None and not local else None


def model_name(checkpoint: str) -> str:
    """Return what a recipe's checkpoint is called, without the place where it lies."""
    return base_model(checkpoint) or Path(checkpoint).name


def _rows(evidence: Evidence) -> Iterator[Row]:
    recipe, facts = evidence.recipe, evidence.facts
    makers = [name for name in (recipe.report.author, recipe.report.organisation) if name]
    if makers:
        yield Row("Made by", ", ".join(makers))
    yield Row("Model", f"{model_name(recipe.checkpoint.path)} ({evidence.family})")
    named = hub_id(recipe.checkpoint.path)
    if named is not None and named[1] and base_model(recipe.checkpoint.path):
        yield Row("Revision", named[1], "the model's commit on the hub", code=True)
    yield from (Row(name, facts[name], note, code=True) for name, note in _HASHES if name in facts)
    yield from (Row(name, facts[name]) for name in ("Threshold τ",) if name in facts)
    versions = [f"{name.removeprefix('Version · ')} {value}" for name, value in facts.items() if name.startswith("Version · ")]
    if versions:
        yield Row("Versions", joined(sorted(versions, key=lambda version: not version.startswith("nemo-edge"))))
    if "Recipe file" in facts:
        yield Row("Built by", f"nemo-edge build {facts['Recipe file']}", code=True)
    if evidence.machine is not None:
        yield Row("Machine", _machine(evidence.machine))
    if evidence.date:
        yield Row("Time", moment(evidence.date), "when the verdict was made")


def _machine(machine: Machine) -> str:
    return f"{machine.words}, {machine.memory_gib} GiB, {machine.system}, Python {machine.python}"
