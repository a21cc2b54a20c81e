"""The command that quantizes a finished bundle. Heavy imports are inside."""

from __future__ import annotations

__all__ = ["quantize"]

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.cli.options import Bundle, Json, print_result


def quantize(
    bundle: Bundle,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new bundle.")],
    scheme: Annotated[str | None, typer.Option("--scheme", help="int8 (default), int8_weights, int4_weights, or fp8.")] = None,
    ranges: Annotated[Path | None, typer.Option("--ranges", help="ranges.json of a bundle of this model; else they are found.")] = None,
    general: Annotated[Path | None, typer.Option("--general", help="Prompts to find them with; else the bundle's own first.")] = None,
    pictures: Annotated[
        int | None,
        typer.Option("--pictures", help="Prompts drawn for them (16, fewer where 200 calls of the UNet end)."),
    ] = None,
    keep: Annotated[list[str] | None, typer.Option("--keep", help="Part of the path of modules to leave; may be repeated.")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Whose [quantization] is taken, and where its prompts are.")] = None,
    as_json: Json = False,
) -> None:
    """Make a bundle of another, its UNet in fewer bits. An interrupted run goes on.

    Needs no checkpoint. What was measured is not in it: it is for `rebake --measure` to say what it does.
    """
    from nemo_edge.cli import console, datasheet
    from nemo_edge.recipe.recipe import load_recipe

    given: dict[str, Any] = {"scheme": scheme, "ranges": ranges, "prompts": pictures, "keep": keep or None}
    places = load_recipe(recipe) if recipe else None
    from nemo_edge.release.quantize import quantize_bundle

    settings = {name: value for name, value in given.items() if value is not None}
    result = quantize_bundle(bundle, output, settings, general=general, places=places, progress=console.Bars())
    print_result(result, as_json, datasheet.show_quantized)
