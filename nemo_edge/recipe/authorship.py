"""Who stands behind a bundle, as its report says it. Knows nothing of what a build does: no result hangs on it."""

from __future__ import annotations

__all__ = ["ReportSettings"]

from typing import Annotated

from pydantic import Field

from nemo_edge.recipe.settings import Settings

_Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f][^\x00-\x1f\x7f]*$", max_length=200)]
"""A name on one line, of more than spaces."""


class ReportSettings(Settings):
    """What the report says of its makers. Only the report is written anew where it changes."""

    author: _Name | None = None
    """Who built the bundle, as "Ada Lovelace <ada@example.org>"."""
    organisation: _Name | None = None
    """Whom they built it for."""
