"""The commands about finished bundles: what they hold, what is drawn with them, and how they are measured and judged once more.

Translates as `cli` does, which puts them among its own; heavy imports are inside the commands.
"""

from __future__ import annotations

__all__ = ["bench", "compare", "compile_engines", "gate", "generate", "inspect", "rebake", "register", "report", "verify"]

from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.cli.attacks import attack
from nemo_edge.cli.options import (
    AllowPickle,
    Authorities,
    Bundle,
    ClipSkip,
    Expect,
    Issuer,
    Json,
    Loras,
    PublicKey,
    RevocationList,
    SignedBy,
    Summary,
    open_model,
    print_result,
    trust_of,
)
from nemo_edge.cli.panels import add
from nemo_edge.cli.quantization import quantize
from nemo_edge.cli.screen import show_identity, show_line
from nemo_edge.cli.signing import revoke, sign


def register(app: typer.Typer) -> None:
    """Put the commands into an app."""
    for command in (rebake, quantize, compile_engines, bench, compare, attack, gate, report, verify, sign, revoke, generate, inspect):
        add(app, command)


def rebake(
    bundle: Bundle,
    neurons: Annotated[Path, typer.Option("--neurons", help="neurons.json or the official .csv.")],
    measure: Annotated[bool, typer.Option("--measure", help="Examine the bundle with its new neurons, and judge it.")] = False,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="Where its weights are; else the recipe's.")] = None,
    recipe: Annotated[Path | None, typer.Option("--recipe", help="What it was built by, if its prompts or weights moved.")] = None,
    as_json: Json = False,
) -> None:
    """Put another neuron set into a bundle, without an export. With --measure, exit code 3 when a gate fails."""
    from nemo_edge.cli import console
    from nemo_edge.recipe.recipe import load_recipe

    places = load_recipe(recipe) if recipe else None
    from nemo_edge.release.rebake import rebake as run

    result = run(bundle, neurons, measure=measure, checkpoint=checkpoint, places=places, progress=console.Bars())
    print_result(result, as_json, console.show_rebaked)
    if measure and not result.passed:
        raise typer.Exit(3)


def compile_engines(
    bundle: Bundle,
    backend: Annotated[str, typer.Option("--backend", help="tensorrt, for this GPU, or tensorrt-rtx.")] = "tensorrt",
    targets: Annotated[list[str] | None, typer.Option("--target", help="Of tensorrt-rtx: sm86, …; may be repeated.")] = None,
    components: Annotated[list[str] | None, typer.Option("--component", help="unet, unet_masked, …; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Compile engines of a finished bundle for this device."""
    from nemo_edge.cli import console, datasheet
    from nemo_edge.recipe.targets import FLAVOUR_OF

    flavour = next((flavour for flavour in FLAVOUR_OF.values() if flavour == backend), None)
    if flavour is None:
        raise typer.BadParameter(f"--backend {backend}: take {' or '.join(FLAVOUR_OF.values())}")
    if targets and flavour == "tensorrt":
        raise typer.BadParameter("--target is for tensorrt-rtx: TensorRT compiles for the GPU that it finds")
    from nemo_edge.release.compile import compile_again

    given = {"targets": targets or None, "components": components or None}
    result = compile_again(bundle, flavour, {name: value for name, value in given.items() if value}, console.Bars())
    print_result(result, as_json, datasheet.show_compiled)


def bench(
    bundle: Bundle,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="Where eager's weights are; else the recipe's.")] = None,
    targets: Annotated[list[str] | None, typer.Option("--target", help="text_encoder, unet, vae_decoder, pipeline.")] = None,
    batches: Annotated[list[int] | None, typer.Option("--batch", help="Pictures at once; may be repeated.")] = None,
    sizes: Annotated[list[str] | None, typer.Option("--size", help="HEIGHTxWIDTH in pixels; may be repeated.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Denoising steps of the pipeline.")] = None,
    runs: Annotated[int | None, typer.Option("--runs", help="Measured calls, at least (10).")] = None,
    seconds: Annotated[float | None, typer.Option("--seconds", help="Time measured for each, at least (3).")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads of every contender.")] = None,
    eager: Annotated[bool | None, typer.Option("--eager/--no-eager", help="Time eager PyTorch too.")] = None,
    compiled: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Time torch.compile too.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the times here, and leave the bundle alone.")] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Name the engine's slowest operators instead.")] = False,
    as_json: Json = False,
) -> None:
    """Time eager PyTorch and every engine, side by side.

    The bundle's gates and report follow. Exit code 3 when a gate fails.
    """
    from nemo_edge.cli import console

    given: dict[str, Any] = {"targets": targets or None, "batches": batches or None, "sizes": sizes or None}
    given |= {"steps": steps, "runs": runs, "seconds": seconds, "threads": threads, "eager": eager, "compiled": compiled}
    settings = _latency_settings(bundle, {name: value for name, value in given.items() if value is not None})
    if profile:
        of_times = (checkpoint, out, steps, seconds, eager, compiled)
        if any(value is not None for value in of_times) or any(len(values or ()) > 1 for values in (targets, batches, sizes)):
            raise typer.BadParameter("--profile takes one --target, --batch and --size, --runs and --threads")
        _profile(bundle, targets[0] if targets else "unet", settings, as_json)
        return
    from nemo_edge.release.review import time_again

    result = time_again(bundle, settings, checkpoint, out, console.Bars())
    print_result(result, as_json, lambda found: console.show_times(found, out or bundle / "report" / "index.html"))
    if not result.passed:
        raise typer.Exit(3)


def _profile(bundle: Path, target: str, settings: Any, as_json: bool) -> None:
    """A component at the first batch and size of what was to be timed, profiled."""
    from nemo_edge.cli import console, datasheet
    from nemo_edge.measure.profile import profile_engine

    size = next(iter(settings.sizes), None)
    options = {"batch": settings.batches[0], "size": size, "threads": settings.threads, "runs": settings.runs}
    print_result(profile_engine(bundle, target, **options, progress=console.Bars()), as_json, datasheet.show_profile)


def compare(
    reference: Annotated[str, typer.Argument(help="PATH or PATH:VARIANT: a checkpoint (eager) or a bundle.")],
    candidate: Annotated[str, typer.Argument(help="What is compared with it. VARIANT: baked, masked, unmitigated.")],
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Prompts file; else four of the bundle's own.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Use the first so many prompts.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first picture.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", min=1, max=1000, help="Denoising steps; else the recipe's.")] = None,
    tolerance: Annotated[float | None, typer.Option("--tolerance", min=0, help="Largest relative error; else the gate's.")] = None,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Compare two runners of the same checkpoint step by step. Exit code 3 when they differ, with the first tensor that does."""
    from nemo_edge.cli import console
    from nemo_edge.recipe.prompts import read_prompts

    texts = tuple(p.text for p in read_prompts(prompts, limit, console.Bars().note)) if prompts else ()
    from nemo_edge.measure.comparison import Question
    from nemo_edge.measure.comparison import compare as run

    result = run(reference, candidate, Question(texts, seed, steps, tolerance, allow_pickle), console.Bars())
    print_result(result, as_json, console.show_comparison)
    if not result.passed:
        raise typer.Exit(3)


def gate(
    bundle: Bundle,
    recipe: Annotated[Path, typer.Option("--recipe", help="Recipe whose [gates] are applied.")],
    write: Annotated[bool, typer.Option("--write", help="Put the new verdict into the bundle.")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the gates as JUnit XML too.")] = None,
    summary: Summary = None,
    as_json: Json = False,
) -> None:
    """Judge a bundle by other gates, from what was measured on it. Exit code 3 when one fails."""
    from nemo_edge.cli import console
    from nemo_edge.recipe.recipe import load_recipe

    gates = load_recipe(recipe).gates
    from nemo_edge.release.review import judge_again

    result = judge_again(bundle, gates, write=write, junit=junit, summary=summary)
    print_result(result, as_json, console.show_verdict)
    if not result.passed:
        raise typer.Exit(3)


def report(bundle: Bundle, summary: Summary = None, as_json: Json = False) -> None:
    """Write a bundle's report again, from what was measured on it."""
    from nemo_edge.bundle.manifest import open_bundle
    from nemo_edge.release.review import report_again

    path = report_again(bundle, summary)
    print_result({"report": str(path), "identity": open_bundle(bundle).identity}, as_json, _show_report)


def _show_report(written: dict[str, str]) -> None:
    show_line(written["report"])
    show_identity(written["identity"])


def verify(
    path: Annotated[Path, typer.Argument(help="Folder of a bundle, or an engine in one.")],
    expect: Expect = None,
    signature: Annotated[bool, typer.Option("--signature", help="Ask for a signature; one of the next says whose.")] = False,
    public_key: PublicKey = None,
    authority: Authorities = None,
    signer: SignedBy = None,
    issuer: Issuer = None,
    revocations: RevocationList = None,
    as_json: Json = False,
) -> None:
    """Compare a bundle or an engine with its manifest.

    Says which engines run here. Exit code 2 when a file differs, and when the signature is not of whom it is asked for.
    """
    trust = trust_of(public_key, authority, signer, issuer, revocations, "--signature" if signature else "")
    from nemo_edge.bundle.engines import verify as run
    from nemo_edge.cli import datasheet

    result = run(path, expect=expect, trust=trust)
    print_result(result, as_json, lambda found: datasheet.show_verified(found, expected=expect is not None))
    if not result.passed:
        raise typer.Exit(2)


def generate(
    bundle: Bundle,
    prompt: Annotated[str, typer.Argument(help="The prompt.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="PNG file; with several pictures, -00, -01 … is added.")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the first picture.")] = 0,
    count: Annotated[int, typer.Option("--count", min=1, max=64, help="Pictures, from seeds one after the other.")] = 1,
    steps: Annotated[int | None, typer.Option("--steps", min=1, max=1000, help="Denoising steps; else the recipe's.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", min=0, help="Guidance scale; else the recipe's.")] = None,
    height: Annotated[int | None, typer.Option("--height", help="Pixels; multiples of 64 suit every model.")] = None,
    width: Annotated[int | None, typer.Option("--width", help="Pixels; multiples of 64 suit every model.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", help="baked or masked; else the first of the bundle.")] = None,
    mask: Annotated[Path | None, typer.Option("--mask", help="For masked: neurons.json or .npy to silence; else the bundle's.")] = None,
    policy: Annotated[str | None, typer.Option("--policy", help="For masked: as a server would: always, triggered, cluster:NAME.")] = None,
    unmitigated: Annotated[bool, typer.Option("--unmitigated", help="For masked: silence nothing.")] = False,
    backend: Annotated[
        str | None, typer.Option("--backend", help="onnxruntime, openvino, tensorrt or tensorrt-rtx; else the recipe's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make pictures with the engines of a bundle."""
    from nemo_edge.cli import console
    from nemo_edge.sampling.generate import Request, draw

    wanted = {"steps": steps, "guidance": guidance, "height": height, "width": width}
    overrides = {name: value for name, value in wanted.items() if value is not None}
    paths = draw(bundle, Request(prompt, seed, count, overrides, variant, mask, unmitigated, backend, policy), out, console.Bars())
    print_result({"pictures": [str(p) for p in paths]}, as_json, lambda _: console.show_paths(paths))


def inspect(
    path: Annotated[str, typer.Argument(help="A bundle, an engine, or a checkpoint.")],
    lora: Loras = None,
    clip_skip: ClipSkip = 0,
    allow_pickle: AllowPickle = False,
    hashes: Annotated[bool, typer.Option("--hashes", help="Whole hashes of a bundle's files, as sha256sum writes them.")] = False,
    as_json: Json = False,
) -> None:
    """Show what a bundle, an engine or a checkpoint holds.

    Of a bundle: its model, date, size, neurons, prompts and gates come first. Says of engines whether they run here, and opens none.
    """
    from nemo_edge.bundle.engines import inspect as run
    from nemo_edge.cli import console, datasheet

    found = run(Path(path))
    if found is not None:
        print_result(found, as_json, lambda result: datasheet.show(result, hashes=hashes))
        return
    opened = open_model(path, allow_pickle, loras=lora, clip_skip=clip_skip)
    from nemo_edge.model.checkpoint import summary

    print_result(summary(opened), as_json, console.show_checkpoint)


def _latency_settings(bundle: Path, given: dict[str, Any]) -> Any:
    """The bundle's own settings with those given on the command line."""
    from nemo_edge.bundle.manifest import open_bundle
    from nemo_edge.recipe.recipe import from_options
    from nemo_edge.recipe.settings import LatencySettings

    names = {"targets": "target", "batches": "batch", "sizes": "size", "compiled": "compile"}
    return from_options(LatencySettings, open_bundle(bundle).recipe.get("latency") or {}, given, names)
