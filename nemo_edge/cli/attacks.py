"""The command that attacks a bundle or a checkpoint. Heavy imports are inside."""

from __future__ import annotations

__all__ = ["attack"]

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.cli.options import AllowPickle, ClipSkip, Json, Loras, loras_of, print_result


def attack(
    source: Annotated[str, typer.Argument(help="A bundle, or a checkpoint.")],
    prompts: Annotated[Path, typer.Option("--prompts", help="Memorized prompts with their training pictures (column image).")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the results go, a .json file.")],
    controls: Annotated[Path | None, typer.Option("--controls", help="Folder of pictures like these that the model never saw.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="text, or embedding; else both.")] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="'greedy search', 'random search', 'random tokens', paraphrases.")
    ] = None,
    starts: Annotated[list[str] | None, typer.Option("--start", help="prompt (default), noise, unrelated; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Attack the first so many of the training pictures.")] = None,
    batches: Annotated[int | None, typer.Option("--batches", help="Batches of 8 that a search for text has (2000).")] = None,
    words: Annotated[int | None, typer.Option("--words", help="Words of a text that is searched for (4).")] = None,
    gradients: Annotated[bool, typer.Option("--gradients/--no-gradients", help="Choose words by gradients, or by chance.")] = True,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the optimiser (50).")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Pictures drawn with what is found (4).")] = None,
    unrelated: Annotated[str | None, typer.Option("--unrelated", help="The unrelated prompt ('a photo of a dog').")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the attack's own noise (0).")] = None,
    neurons: Annotated[Path | None, typer.Option("--neurons", help="What is silenced in a checkpoint; else nothing.")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Whose [sampling] draws with a checkpoint.")] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="Where a bundle's weights are; else the recipe's.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="What eager PyTorch runs on: cpu, or cuda; else the recipe's.")] = None,
    lora: Loras = None,
    clip_skip: ClipSkip = 0,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Bring memories back: with text that anyone can type, and as an owner of the weights can. An interrupted attack goes on."""
    from nemo_edge.recipe.recipe import from_options, load_recipe
    from nemo_edge.recipe.settings import AttackSettings, CheckpointSettings

    given: dict[str, Any] = {
        "controls": controls,
        "text": text or None,
        "starts": starts or None,
        "limit": limit,
        "batches": batches,
        "words": words,
    }
    given |= {"gradients": gradients, "steps": steps, "seeds": seeds, "unrelated": unrelated, "seed": seed, **_left_out(only)}
    settings = from_options(AttackSettings, {}, {name: v for name, v in given.items() if v is not None}, {"starts": "start"})
    asked = {**({"allow_pickle": True} if allow_pickle else {}), **({"device": device} if device else {})}
    weights = from_options(CheckpointSettings, {"path": source, "loras": loras_of(lora), "clip_skip": clip_skip}, asked)
    from nemo_edge.cli import console, findings
    from nemo_edge.measure.attacks.campaign import attack as run
    from nemo_edge.measure.attacks.subject import Place

    place = Place(weights, neurons, load_recipe(recipe).sampling if recipe else None, checkpoint)
    result = run(place, prompts, settings, output, console.Bars())
    print_result(result, as_json, lambda found: findings.show_attack(found, output))


def _left_out(only: str | None) -> dict[str, tuple[str, ...]]:
    """The settings that leave the other attack out."""
    from nemo_edge.system.errors import InputError

    left: dict[str | None, dict[str, tuple[str, ...]]] = {"text": {"starts": ()}, "embedding": {"text": ()}, None: {}}
    if only not in left:
        raise InputError(f"--only {only}: give text or embedding")
    return left[only]
