"""The command that audits a server of pictures from outside. Heavy imports are inside."""

from __future__ import annotations

__all__ = ["audit"]

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.cli.options import Json, print_result
from nemo_edge.system.errors import InputError

_PROMPTS = 40
"""Prompts that a table has room for."""


def audit(
    prompts: Annotated[Path, typer.Option("--prompts", help="Prompts, with their training pictures where known (column image).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the results go, a .json file.")],
    url: Annotated[str | None, typer.Argument(help="Of a Triton server or a Ray Serve.")] = None,
    command: Annotated[str | None, typer.Option("--command", help="Not a URL: a program, with {prompt}, {output} and {seed}.")] = None,
    server: Annotated[str | None, typer.Option("--server", help="triton or ray; else it is asked.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="Of the server; else `pipeline`, or its only one that draws.")] = None,
    general: Annotated[Path | None, typer.Option("--general", help="Prompts known not to be memorized, as a control.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="paraphrases, 'random tokens' (both), or none.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Send the first so many of the prompts.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Pictures of each text (4).")] = None,
    variants: Annotated[int | None, typer.Option("--variants", help="Texts of each kind for a prompt (16).")] = None,
    words: Annotated[int | None, typer.Option("--words", help="Most words that are thrown into a prompt (4).")] = None,
    vocabulary: Annotated[Path | None, typer.Option("--vocabulary", help="Folder whose tokenizer has these words; else ours.")] = None,
    threshold: Annotated[float | None, typer.Option("--threshold", help="Largest distance of a copy; else it is found.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the choice of texts (0).")] = None,
    most: Annotated[int | None, typer.Option("--most", help="Exit code 3 where more prompts give a picture back.")] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=1, max=86_400, help="Seconds that a picture may take.")] = 600,
    as_json: Json = False,
) -> None:
    """Ask somebody's server for pictures, and count copies.

    Without its weights; says which prompts give training pictures back. An interrupted audit goes on. Exit code 0
    whatever is found, unless --most is given; 2 where it was not answered.
    """
    from nemo_edge.cli import console
    from nemo_edge.recipe.recipe import from_options
    from nemo_edge.serving.audit.base import AuditSettings
    from nemo_edge.serving.audit.campaign import audit as run
    from nemo_edge.serving.remotes.opening import Address

    given: dict[str, Any] = {"limit": limit, "seeds": seeds, "variants": variants, "words": words, "threshold": threshold}
    given |= {"seed": seed, "most": most, "text": [] if text == ["none"] else text or None}
    settings = from_options(AuditSettings, {}, {name: value for name, value in given.items() if value is not None})
    address = Address(url, command, server, model, timeout)
    result = run(address, prompts, settings, output, general=general, vocabulary=vocabulary, progress=console.Bars())
    print_result(result, as_json, lambda found: _show(found, output))
    if result.passed is False:
        raise typer.Exit(3)
    if result.passed is None and most is not None:
        raise InputError(
            f"--most {most} has no verdict: nothing was drawn of {result.unanswered[0]!r} and {len(result.unanswered)} prompts in all; "
            "leave them out of the list, or ask a server that draws them"
        )


def _show(found: Any, output: Path) -> None:
    """What came back of each kind of prompt in each way, and what may be said of it."""
    from rich.markup import escape

    from nemo_edge.cli.screen import Console, table_of

    table = table_of("Prompts", "Sent", "Returned", "Copies", "Distance")
    for kind, rates in _rows(found):
        for rate in rates:
            counts = (f"{rate.count.returned}/{rate.count.of} ({rate.count.bound})", f"{rate.copies}/{rate.drawn}")
            table.add_row(kind, "as it is" if rate.way == "prompt" else rate.way, *counts, f"{rate.distance:.3f}")
    out, begun = Console(), found.begun
    out.print(table)
    if found.givers:
        back = table_of("Gives a picture back", "As it is", "Changed", "Nearest")
        for giver in found.givers[:_PROMPTS]:
            shares = ("/".join(map(str, share)) for share in (giver.own, giver.changed))
            back.add_row(escape(giver.prompt), *shares, f"{giver.nearest:.3f}")
        out.print(back)
        if len(found.givers) > _PROMPTS:
            out.print(f"and {len(found.givers) - _PROMPTS} more: see the results")
    for what, distance, pairs in (
        ("a copy is", begun.copy_threshold, begun.copy_pairs),
        ("alike are pictures", begun.alike_threshold, begun.alike_pairs),
    ):
        if distance is not None:
            out.print(f"{what} at most {distance:.3f} away{f', of {pairs} unrelated pairs' if pairs else ''}")
    for sentence in found.verdicts:
        out.print(escape(sentence), highlight=False)
    out.print(f"written to {escape(str(output))}", soft_wrap=True)


def _rows(found: Any) -> list[tuple[str, Any]]:
    parts = [("picture known", found.known), ("not known", found.unknown)]
    return [*((kind, part.rates) for kind, part in parts if part), *([("not memorized", [found.control])] if found.control else [])]
