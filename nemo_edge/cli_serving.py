"""The command that takes a bundle to an inference server.

Translates as `cli` does, which puts it among its own; heavy imports are inside the command.
"""

from __future__ import annotations

__all__ = ["register", "ship"]

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.options import Bundle, Json, print_result


def register(app: typer.Typer) -> None:
    """Put the command into an app."""
    app.command()(ship)


def ship(
    bundle: Bundle,
    repository: Annotated[Path, typer.Option("--to", help="Triton model repository, a folder.")],
    backend: Annotated[str | None, typer.Option("--backend", help="native (Triton's) or python; else as the recipe.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="baked or masked; masked where there is one.")] = None,
    instances: Annotated[int, typer.Option("--instances", min=1, help="Requests that are drawn at once.")] = 2,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Let the server's log have the prompts.")] = False,
    masks_only: Annotated[bool, typer.Option("--masks-only", help="New neurons for engines that are there; needs no load.")] = False,
    as_json: Json = False,
) -> None:
    """Put a bundle into a Triton model repository, as one more version. Refuses one that failed a gate or was changed."""
    if masks_only:
        _check_alone({"--backend": backend, "--variant": variant, "--log-prompts": log_prompts})
        from nemo_edge.serving.hotupdate import ship_masks

        print_result(ship_masks(bundle, repository), as_json, _show_masks)
        return
    from nemo_edge import console
    from nemo_edge.serving.repository import ship as run

    result = run(bundle, repository, backend, variant, instances=instances, log_prompts=log_prompts, progress=console.Bars())
    print_result(result, as_json, _show)


def _check_alone(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"--masks-only ships no engine: leave out {name}")


def _show(shipped: Any) -> None:
    """What is in a model repository now, and how a server takes it up."""
    what = f"version {shipped.version} of {', '.join(shipped.models)}"
    print(f"{shipped.repository}: {what} ({shipped.variant}, backend {shipped.backend})")
    print("a server that runs takes it up by POST to /v2/repository/models/NAME/load, in this order")


def _show_masks(shipped: Any) -> None:
    """What a server that runs silences from now on."""
    where = f"update {shipped.update} of version {shipped.version} of the pipeline"
    print(f"{shipped.repository}: {where}, policies {shipped.policies} ({shipped.neurons} neurons)")
    print("a server that runs silences them from its next request on")
