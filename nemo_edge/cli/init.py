"""The command that writes a first recipe. Heavy imports are inside."""

from __future__ import annotations

__all__ = ["init"]

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nemo_edge.cli.options import AllowPickle, Json, print_result
from nemo_edge.system.errors import InputError

if TYPE_CHECKING:
    from nemo_edge.release.draft import Draft


def init(
    checkpoint: Annotated[str | None, typer.Argument(help="Diffusers folder, .safetensors file or hub id; else it is asked for.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="List of the memorized prompts, where you have it.")] = None,
    general: Annotated[Path | None, typer.Option("--general", help="List of general prompts, where you have it.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The recipe; else NAME.toml in this folder.")] = None,
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="GPUs to compile for: sm75, sm80, sm86, sm89, sm120, sm121.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a recipe that is there.")] = False,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Write a first recipe for a checkpoint.

    Says in it what was found, and runs it with what runs here. In a terminal it asks for what is not given. Nothing is built.
    """
    from nemo_edge.cli import console

    asks = sys.stdin.isatty() and not as_json
    if checkpoint is None:
        if not asks:
            raise InputError("no checkpoint is given: nemo-edge init CHECKPOINT, a diffusers folder, a .safetensors file or a hub id")
        checkpoint = str(typer.prompt("Checkpoint (diffusers folder, .safetensors file or hub id)", err=True))
    if asks:
        prompts = prompts or _asked("List of memorized prompts")
        general = general or _asked("List of general prompts, not memorized")
    from nemo_edge.release.draft import Wish, draft

    with console.Bars().waiting("looking at the checkpoint and this machine"):
        result = draft(Wish(checkpoint, prompts, general, output, tuple(targets or ()), allow_pickle, force))
    print_result(result, as_json, _show)


def _asked(what: str) -> Path | None:
    answer = str(typer.prompt(f"{what} (a file; Enter: later)", default="", show_default=False, err=True)).strip()
    return Path(answer) if answer else None


def _show(made: Draft) -> None:
    """What was found, where the recipe is, and what to do next."""
    from rich.console import Console
    from rich.markup import escape

    out, found = Console(), made.found
    out.print(
        f"[bold]{escape(found.source)}[/]: {escape(found.kind)}, {found.height} × {found.width} pixels", soft_wrap=True, highlight=False
    )
    out.print(f"{found.neurons:,} value neurons in {found.value_layers} layers can be searched for memories", highlight=False)
    settings = found.sampler.settings
    out.print(f"drawn in {settings.steps} steps of guidance {settings.guidance:g}: {escape(found.sampler.why)}", highlight=False)
    for line in made.engines:
        out.print(escape(line), highlight=False)
    if made.remedy:
        out.print(f"[yellow]a build does not fit on this machine[/]: {escape(made.remedy)}", highlight=False)
    out.print(f"written to {escape(made.recipe)}", soft_wrap=True, highlight=False)
    for path in made.missing:
        out.print(f"still to do: put your prompts into {escape(path)} beside it (docs/prompts.md)", soft_wrap=True, highlight=False)
    if made.missing:
        out.print("general prompts are in the repository too: --general calib/general.txt", soft_wrap=True, highlight=False)
    out.print(f"then: nemo-edge build {escape(shlex.quote(made.recipe))} --dry-run", soft_wrap=True, highlight=False)
