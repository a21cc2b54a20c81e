"""How long work tells what it has done; by default it tells nobody."""

from __future__ import annotations

__all__ = ["Advance", "Progress"]

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
"""Called with the number of units done since the last call."""


class Progress:
    """Receives the progress of long work and keeps it to itself; the command line overrides it with a bar."""

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """Within the context `total` units of work are done; yields the function to report them with."""
        yield lambda done: None

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Within the context something is done that cannot be counted and has no task, `what`."""
        yield

    def phase(self, name: str) -> None:
        """What the task is busy with now, in the words of the tool that does it; empty: nothing in particular."""

    def note(self, message: str) -> None:
        """Something worth a line."""
