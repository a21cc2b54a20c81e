"""The command that hardens a checkpoint. Heavy imports are inside."""

from __future__ import annotations

__all__ = ["harden"]

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.cli.options import AllowPickle, Checkpoint, Json, print_result


def harden(
    checkpoint: Checkpoint,
    neurons: Annotated[Path, typer.Option("--neurons", help="What is silenced: neurons.json, or the official code's .csv.")],
    prompts: Annotated[Path, typer.Option("--prompts", help="Memorized prompts with their training pictures (column image).")],
    general: Annotated[Path, typer.Option("--general", help="General prompts, whose pictures must stay what they are.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the new checkpoint.")],
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Whose [sampling] draws what is learned.")] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Of an attack on one memory and a step against it (600).")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="What may change: all (default), cross-attention, or low-rank.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Learning rate of the weights (1e-4).")] = None,
    keep: Annotated[float | None, typer.Option("--keep", help="Weight of other pictures beside what is forgotten (10).")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of noise, times and order (0).")] = None,
    marks: Annotated[list[int] | None, typer.Option("--mark", help="Write OUTPUT-N too, as it is after N rounds; may be repeated.")] = None,
    silence: Annotated[
        bool, typer.Option(help="Leave the neurons as they are in what is made: only the teacher has them silenced.")
    ] = True,
    device: Annotated[str, typer.Option("--device", help="What PyTorch runs on: cpu, or cuda.")] = "cpu",
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Teach a checkpoint's weights to hold less of its memories. An interrupted run goes on.

    Silences the neurons and fine-tunes the UNet against an embedding attack. Whether it helped is for `attack` to say.
    """
    from nemo_edge.cli import console, findings
    from nemo_edge.hardening.harden import harden as run
    from nemo_edge.recipe.hardening import HardeningSettings
    from nemo_edge.recipe.recipe import from_options, load_recipe
    from nemo_edge.recipe.settings import CheckpointSettings, SamplingSettings

    given: dict[str, Any] = {"rounds": rounds, "weights": weights, "rate": rate, "keep": keep, "seed": seed}
    settings = from_options(HardeningSettings, {}, {name: value for name, value in given.items() if value is not None})
    source = from_options(CheckpointSettings, {"path": checkpoint, "allow_pickle": allow_pickle}, {"device": device})
    sampling = load_recipe(recipe).sampling if recipe else SamplingSettings()
    result = run(source, neurons, prompts, general, output, settings, sampling, console.Bars(), tuple(marks or ()), silence=silence)
    print_result(result, as_json, lambda found: findings.show_hardened(found, output))
