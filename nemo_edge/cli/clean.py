"""The command that shows what nemo-edge keeps and what killed runs have left, and removes it. Heavy imports are inside."""

from __future__ import annotations

__all__ = ["clean"]

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.cli.options import Json, print_result


def clean(
    folder: Annotated[Path, typer.Argument(help="A bundle, or a folder of bundles.")] = Path(),
    everything: Annotated[bool, typer.Option("--all", help="Remove the caches, too: of stages, traces, compiled graphs.")] = False,
    as_json: Json = False,
) -> None:
    """Remove what killed runs have left, and show caches.

    Each with its size. Whatever is in a cache can be made again.
    """
    from nemo_edge.release.clean import clean as run

    print_result(run(folder, everything=everything), as_json, _show)


def _show(cleaned: Any) -> None:
    """What was found, the largest first, and what came of it."""
    from rich.console import Console
    from rich.markup import escape

    from nemo_edge.cli.screen import table_of

    out, table = Console(), table_of("Path", "What", "MB", "Removed")
    for each in sorted(cleaned.found, key=lambda found: -found.size_bytes):
        size = f"{each.size_bytes / 1e6:,.1f}"
        table.add_row(escape(each.path), each.kind, size, "yes" if each.removed else escape(each.note) or "no")
    if cleaned.found:
        out.print(table)
    out.print(f"{cleaned.removed_bytes / 1e6:,.1f} MB removed", highlight=False)
    if any(not each.removed and not each.note for each in cleaned.found):
        out.print("the caches go with --all; what is in them is made again where it is needed", highlight=False)
