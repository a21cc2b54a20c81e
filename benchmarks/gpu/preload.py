"""Imports what tasks and contenders need, once, in the server that their processes are forked from where there is no GPU (`run.fresh`).

That is its whole use. What cannot be imported is left to the process that needs it, and is told in its row.
"""

from __future__ import annotations

from contextlib import suppress

with suppress(Exception):
    import nemo_edge.export.preload  # noqa: F401
