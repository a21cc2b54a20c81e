"""Calls made as another command would make them: an output's lock knows who holds it."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import Context
from typing import TypeVar

_Result = TypeVar("_Result")


def elsewhere(call: Callable[[], _Result]) -> _Result:
    """Return what `call` returns that holds nothing of what its caller holds."""
    return Context().run(call)
