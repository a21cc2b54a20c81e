"""The command that attacks a bundle or a checkpoint. Heavy imports are inside."""

from __future__ import annotations

__all__ = ["attack"]

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nemo_edge.cli.options import AllowPickle, ClipSkip, Json, Loras, loras_of, print_result

if TYPE_CHECKING:
    from nemo_edge.measure.attacks.subject import Place
    from nemo_edge.recipe.settings import CheckpointSettings, SamplingSettings

_OPTIONS = {"starts": "start"}
"""Settings whose options have another name."""


def attack(
    source: Annotated[str, typer.Argument(help="A bundle, or a checkpoint; with --smoke an architecture too.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the results go, a .json file.")],
    prompts: Annotated[
        Path | None, typer.Option("--prompts", help="Memorized prompts with their training pictures (column image); else the bundle's.")
    ] = None,
    controls: Annotated[Path | None, typer.Option("--controls", help="Folder of pictures like these that the model never saw.")] = None,
    only: Annotated[str | None, typer.Option("--only", help="text, or embedding; else both.")] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="'greedy search', 'random search', 'random tokens', paraphrases.")
    ] = None,
    starts: Annotated[list[str] | None, typer.Option("--start", help="prompt (default), noise, unrelated; may be repeated.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Attack the first so many of the training pictures.")] = None,
    batches: Annotated[int | None, typer.Option("--batches", help="Batches of 8 that a search for text has (2000).")] = None,
    words: Annotated[int | None, typer.Option("--words", help="Words of a text that is searched for (4).")] = None,
    candidates: Annotated[int | None, typer.Option("--candidates", help="Words that a greedy search tries at each place (64).")] = None,
    variants: Annotated[
        int | None, typer.Option("--variants", help="Paraphrases of a prompt, and texts with words thrown in (16).")
    ] = None,
    gradients: Annotated[bool | None, typer.Option("--gradients/--no-gradients", help="Choose words by gradients, or by chance.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Steps of the optimiser (50).")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Pictures drawn with what is found (4).")] = None,
    unrelated: Annotated[str | None, typer.Option("--unrelated", help="The unrelated prompt ('a photo of a dog').")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the attack's own noise (0).")] = None,
    neurons: Annotated[Path | None, typer.Option("--neurons", help="What is silenced in a checkpoint; else nothing.")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Whose [sampling] draws with a checkpoint.")] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="Where a bundle's weights are; else the recipe's.")] = None,
    hardened: Annotated[str | None, typer.Option("--hardened", help="Where a hardened bundle's hardened checkpoint is.")] = None,
    device: Annotated[str | None, typer.Option("--device", help="What eager PyTorch runs on: cpu, or cuda; else the recipe's.")] = None,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="Three prompts at 128 pixels with random weights: does it run, what does it take?")
    ] = False,
    lora: Loras = None,
    clip_skip: ClipSkip = 0,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Try to bring memories back, by text and by embedding.

    With text that anyone can type, and as an owner of the weights can. An interrupted attack goes on. What is not given is as in the
    bundle's own [attack].
    """
    given: dict[str, Any] = {"controls": controls, "limit": limit, "batches": batches, "words": words, "candidates": candidates}
    given |= {"variants": variants, "gradients": gradients, "steps": steps, "seeds": seeds, "unrelated": unrelated, "seed": seed}
    chosen = {name: value for name, value in {**given, **_ways(only, text, starts)}.items() if value is not None}
    from nemo_edge.recipe.recipe import from_options, load_recipe
    from nemo_edge.recipe.settings import CheckpointSettings

    asked = {**({"allow_pickle": True} if allow_pickle else {}), **({"device": device} if device else {})}
    weights = from_options(CheckpointSettings, {"path": source, "loras": loras_of(lora), "clip_skip": clip_skip}, asked)
    sampling = load_recipe(recipe).sampling if recipe else None
    if smoke:
        _refuse(
            {
                "--prompts": prompts,
                "--controls": controls,
                "--neurons": neurons,
                "--checkpoint": checkpoint,
                "--lora": lora,
                "--hardened": hardened,
            }
        )
        _smoke(weights, output, chosen, sampling, as_json)
    else:
        from nemo_edge.measure.attacks.subject import Place

        _attack(Place(weights, neurons, sampling, checkpoint, hardened), prompts, output, chosen, as_json)


def _ways(only: str | None, text: list[str] | None, starts: list[str] | None) -> dict[str, Any]:
    """The ways that are asked for; `only` leaves those of the other attack out."""
    from nemo_edge.system.errors import InputError

    if only not in ("text", "embedding", None):
        raise InputError(f"--only {only}: give text or embedding")
    contrary = {"text": ("--start", starts), "embedding": ("--text", text), None: ("", None)}[only]
    if contrary[1]:
        raise InputError(f"--only {only} leaves out what {contrary[0]} asks for: give one of the two")
    return {"text": () if only == "embedding" else text or None, "starts": () if only == "text" else starts or None}


def _refuse(useless: Mapping[str, object]) -> None:
    from nemo_edge.system.errors import InputError

    given = next((option for option, value in useless.items() if value), None)
    if given:
        raise InputError(f"--smoke attacks random weights with pictures and prompts of its own: leave out {given}, or --smoke")


def _attack(place: Place, prompts: Path | None, output: Path, given: dict[str, Any], as_json: bool) -> None:
    """With the list and the settings that are given, and else the bundle's own."""
    from nemo_edge.cli import console, findings
    from nemo_edge.measure.attacks.campaign import attack as run
    from nemo_edge.recipe.recipe import from_options
    from nemo_edge.recipe.settings import AttackSettings
    from nemo_edge.system.errors import InputError

    recipe = place.recipe()
    listed = prompts or (recipe.prompts.memorized if recipe else None)
    if listed is None:
        raise InputError("--prompts is missing: a list of the memorized prompts with their training pictures, which a bundle alone knows")
    own = recipe.attack.model_dump() if recipe and recipe.attack else {}
    result = run(place, listed, from_options(AttackSettings, own, given, _OPTIONS), output, console.Bars())
    print_result(result, as_json, lambda found: findings.show_attack(found, output))


def _smoke(weights: CheckpointSettings, output: Path, given: dict[str, Any], sampling: SamplingSettings | None, as_json: bool) -> None:
    from nemo_edge.cli import console, findings
    from nemo_edge.recipe.recipe import from_options
    from nemo_edge.recipe.settings import AttackSettings
    from nemo_edge.release import smoke

    settings = from_options(AttackSettings, smoke.SETTINGS, given, _OPTIONS)
    found = smoke.smoke(weights, settings, output, sampling or smoke.SAMPLING, console.Bars())
    print_result(found, as_json, lambda result: findings.show_smoke(result, output))
