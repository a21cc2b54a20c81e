"""What brings every memory back without an attack: the switches that a bundle comes with, and who can use them.

Knows a bundle's files and variants; runs nothing.
"""

from __future__ import annotations

__all__ = ["Switch", "switches"]

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from nemo_edge.bundle.policies import POLICIES
from nemo_edge.graph.valueweights import SILENCED_ROWS
from nemo_edge.model.component import VALUE_MASK


class Switch(BaseModel):
    """An attack that always succeeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    who: str
    """Who can use it."""


def switches(bundle: Path, variants: Sequence[str]) -> tuple[Switch, ...]:
    """Return those of a bundle; a baked one of which nothing else is kept has none."""
    found = []
    if "masked" in variants:
        found.append(
            Switch(name=f"a {VALUE_MASK} of ones", who="whoever feeds the masked UNet its inputs: its file, or a server of the bare UNet")
        )
    if (bundle / POLICIES).is_file():
        found.append(Switch(name="the policy off", who="whoever may send a served pipeline its policy: hold that back from the public"))
    if any(bundle.rglob(SILENCED_ROWS)):
        found.append(
            Switch(name=SILENCED_ROWS, who="whoever has the bundle's folder: it holds the rows that were taken out, to rebake with")
        )
    return tuple(found)
