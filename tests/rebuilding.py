"""What tests of builds have in common: a build again, and what it did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nemo_edge.recipe.recipe import Recipe
from nemo_edge.release.build import BuildResult, build
from nemo_edge.system.progress import Advance, Progress


class Record(Progress):
    """Keeps which tasks ran and which stages were left out."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.skipped: list[str] = []
        self.notes: list[str] = []

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        self.tasks.append(description)
        yield lambda done: None

    def note(self, message: str) -> None:
        self.notes.append(message)
        if message.endswith(": nothing has changed"):
            self.skipped.append(message.removesuffix(": nothing has changed").rpartition(", ")[2])


def rebuilt(recipe: Recipe) -> tuple[BuildResult, Record]:
    record = Record()
    return build(recipe, record), record
