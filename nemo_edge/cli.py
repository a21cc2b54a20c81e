"""The command line: translates options into settings, calls one library function, prints one result.

Heavy imports are inside the commands, so that `--help` is immediate.
"""

from __future__ import annotations

__all__ = ["app", "main"]

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from nemo_edge.exits import INTERRUPTED, exit_code, stop_on_sigterm

app = typer.Typer(
    name="nemo-edge",
    help="Ship text-to-image diffusion models as engines that do not give back their training images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Checkpoint = Annotated[str, typer.Argument(help="Diffusers folder, .safetensors file or hub id.")]
Bundle = Annotated[Path, typer.Argument(help="Folder of a bundle.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output and nothing else.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Open pickle weights, which can run any code.")]
Prompts = Annotated[Path, typer.Argument(help="Prompts: .txt, .csv (column Caption or prompt) or .jsonl.")]
AllLayers = Annotated[bool, typer.Option("--all-layers", help="Value layers of the up blocks too, not only the paper's.")]
Summary = Annotated[Path | None, typer.Option("--summary", help="Add a job summary in Markdown to this file.")]
Statistics = Annotated[Path, typer.Option("--statistics", help="What `nemo-edge calibrate` wrote, or the official .pt file.")]
ThresholdOption = Annotated[float | None, typer.Option("--threshold", min=0, max=1, help="τ; else the one in the statistics.")]


@app.command()
def build(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything, say what would run, write nothing.")] = False,
    random: Annotated[str | None, typer.Option("--random-weights", help="Not the checkpoint: sd15, sd21, sdxl, bk-sdm-small.")] = None,
    neurons: Annotated[Path | None, typer.Option("--neurons", help="With random weights: what is silenced (.json, .csv).")] = None,
    summary: Summary = None,
    as_json: Json = False,
) -> None:
    """Build a bundle: calibrate, localize, export, compile, measure, judge. Exit code 3 when a gate fails."""
    from nemo_edge import console
    from nemo_edge.build import build as run
    from nemo_edge.build import plan
    from nemo_edge.recipe import load_recipe, with_random_weights

    settings = with_random_weights(load_recipe(recipe), random, neurons)
    if summary is not None and settings.random_weights is not None:
        raise typer.BadParameter("--summary: nothing is measured on random weights that could be summarized")
    if dry_run:
        _print(plan(settings), as_json, console.show_plan)
        return
    if summary is not None:
        from nemo_edge.review import check_outputs, summarize

        check_outputs(settings.output, summary)
    result = run(settings, console.Bars())
    if summary is not None:
        summarize(settings.output, summary)
    _print(result, as_json, console.show_build)
    if not result.passed:
        raise typer.Exit(3)


@app.command()
def calibrate(
    checkpoint: Checkpoint,
    prompts: Prompts,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the statistics go, a .safetensors file.")],
    limit: Annotated[int | None, typer.Option("--limit", min=2, help="Use the first so many prompts.")] = None,
    all_layers: AllLayers = False,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Measure reference statistics and the threshold τ on general prompts."""
    from nemo_edge import console
    from nemo_edge.bundle import check_file
    from nemo_edge.prompts import read_prompts

    texts = [p.text for p in read_prompts(prompts, limit)]
    check_file(out)
    from nemo_edge.calibration import calibrate as run

    with console.Bars().task("calibrate", len(texts)) as advance:
        calibration = run(_open(checkpoint, allow_pickle), texts, _localization(all_layers), advance)
    calibration.save(out)
    _print(calibration.provenance, as_json, lambda p: console.show_calibration(p, out))


@app.command()
def detect(
    checkpoint: Checkpoint,
    prompts: Prompts,
    statistics: Statistics,
    threshold: ThresholdOption = None,
    all_layers: AllLayers = False,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Say which prompts are memorized."""
    from nemo_edge import console
    from nemo_edge.prompts import read_prompts

    texts = [p.text for p in read_prompts(prompts)]
    localizer = _localizer(checkpoint, statistics, threshold, all_layers, allow_pickle)
    rows = []
    with console.Bars().task("detect", len(texts)) as advance:
        for text in texts:
            score, seeds = localizer.detect(text)
            rows.append({"prompt": text, "score": score, "memorized": bool(seeds), "seeds": list(seeds)})
            advance(1)
    _print({"threshold": localizer.threshold, "prompts": rows}, as_json, console.show_detection)


@app.command()
def localize(
    checkpoint: Checkpoint,
    prompts: Prompts,
    statistics: Statistics,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for localization.jsonl and neurons.json.")],
    threshold: ThresholdOption = None,
    all_layers: AllLayers = False,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Find the memorization neurons of each prompt; an interrupted run goes on where it stopped."""
    from nemo_edge import console
    from nemo_edge.bundle import check_folder
    from nemo_edge.prompts import read_prompts

    texts = [p.text for p in read_prompts(prompts)]
    check_folder(out)
    localizer = _localizer(checkpoint, statistics, threshold, all_layers, allow_pickle)
    from nemo_edge.localization import union

    with console.Bars().task("localize", len(texts)) as advance:
        found = localizer.localize_all(texts, out / "localization.jsonl", lambda _: advance(1))
    union(found).save(out / "neurons.json")
    _print(
        {"results": [r.model_dump(mode="json") for r in found], "out": str(out)}, as_json, lambda _: console.show_localizations(found, out)
    )


@app.command()
def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the ONNX files; must be absent or empty.")],
    neurons: Annotated[Path | None, typer.Option("--neurons", help="neurons.json or the official .csv; else nothing is baked.")] = None,
    masked: Annotated[bool, typer.Option("--masked", help="Give the UNet a value_mask input instead of baking.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32, fp16 or bf16.")] = "fp32",
    opset: Annotated[int, typer.Option("--opset", min=18, max=24, help="ONNX opset.")] = 23,
    all_layers: AllLayers = False,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to ONNX, each file checked against eager PyTorch."""
    from nemo_edge import console
    from nemo_edge.production import export_folder
    from nemo_edge.recipe import CheckpointSettings, ExportSettings, from_options

    settings = from_options(ExportSettings, {"variants": ["masked" if masked else "baked"]}, {"dtype": dtype, "opset": opset})
    source = CheckpointSettings(path=checkpoint, allow_pickle=allow_pickle)
    exported = export_folder(source, settings, neurons, "all" if all_layers else "paper", out, console.Bars())
    _print(
        {"out": str(out), "exported": [e.model_dump(mode="json") for e in exported]}, as_json, lambda _: console.show_export(exported, out)
    )


@app.command()
def rebake(
    bundle: Bundle,
    neurons: Annotated[Path, typer.Option("--neurons", help="neurons.json or the official .csv.")],
    measure: Annotated[bool, typer.Option("--measure", help="Examine the bundle with its new neurons, and judge it.")] = False,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", help="Where its weights are; else the recipe's.")] = None,
    as_json: Json = False,
) -> None:
    """Put another neuron set into a bundle, without an export. With --measure, exit code 3 when a gate fails."""
    from nemo_edge import console
    from nemo_edge.rebake import rebake as run

    result = run(bundle, neurons, measure=measure, checkpoint=checkpoint, progress=console.Bars())
    _print(result, as_json, console.show_rebaked)
    if measure and not result.passed:
        raise typer.Exit(3)


@app.command()
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
    as_json: Json = False,
) -> None:
    """Time eager PyTorch and every engine of a bundle side by side; its gates and report follow. Exit code 3 when a gate fails."""
    from nemo_edge import console

    given: dict[str, Any] = {"targets": targets or None, "batches": batches or None, "sizes": sizes or None}
    given |= {"steps": steps, "runs": runs, "seconds": seconds, "threads": threads, "eager": eager, "compiled": compiled}
    settings = _latency_settings(bundle, {name: value for name, value in given.items() if value is not None})
    from nemo_edge.review import time_again

    result = time_again(bundle, settings, checkpoint, out, console.Bars())
    place = out or bundle / ("report/index.html" if result.gates else "latency.json")
    _print(result, as_json, lambda found: console.show_times(found, place))
    if not result.passed:
        raise typer.Exit(3)


@app.command()
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
    from nemo_edge import console
    from nemo_edge.prompts import read_prompts

    texts = tuple(p.text for p in read_prompts(prompts, limit)) if prompts else ()
    from nemo_edge.comparison import Question
    from nemo_edge.comparison import compare as run

    result = run(reference, candidate, Question(texts, seed, steps, tolerance, allow_pickle), console.Bars())
    _print(result, as_json, console.show_comparison)
    if not result.passed:
        raise typer.Exit(3)


@app.command()
def gate(
    bundle: Bundle,
    recipe: Annotated[Path, typer.Option("--recipe", help="Recipe whose [gates] are applied.")],
    write: Annotated[bool, typer.Option("--write", help="Put the new verdict into the bundle.")] = False,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write the gates as JUnit XML too.")] = None,
    summary: Summary = None,
    as_json: Json = False,
) -> None:
    """Judge a bundle by other gates, from what was measured on it. Exit code 3 when one fails."""
    from nemo_edge import console
    from nemo_edge.recipe import load_recipe

    gates = load_recipe(recipe).gates
    from nemo_edge.review import judge_again

    result = judge_again(bundle, gates, write=write, junit=junit, summary=summary)
    _print(result, as_json, console.show_verdict)
    if not result.passed:
        raise typer.Exit(3)


@app.command()
def report(bundle: Bundle, summary: Summary = None, as_json: Json = False) -> None:
    """Write a bundle's report again, from what was measured on it."""
    from nemo_edge import console
    from nemo_edge.review import report_again

    path = report_again(bundle, summary)
    _print({"report": str(path)}, as_json, lambda _: console.show_paths([path]))


@app.command()
def verify(path: Annotated[Path, typer.Argument(help="Folder of a bundle, or an engine in one.")], as_json: Json = False) -> None:
    """Compare a bundle or one engine of it with its manifest; say which engines run here. Exit code 2 when a file differs."""
    from nemo_edge import datasheet
    from nemo_edge.engines import verify as run

    result = run(path)
    _print(result, as_json, datasheet.show_verified)
    if not result.passed:
        raise typer.Exit(2)


@app.command()
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
    unmitigated: Annotated[bool, typer.Option("--unmitigated", help="For masked: silence nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Make pictures with the engines of a bundle."""
    from nemo_edge import console
    from nemo_edge.studio import Request, draw

    wanted = {"steps": steps, "guidance": guidance, "height": height, "width": width}
    overrides = {name: value for name, value in wanted.items() if value is not None}
    paths = draw(bundle, Request(prompt, seed, count, overrides, variant, mask, unmitigated), out, console.Bars())
    _print({"pictures": [str(p) for p in paths]}, as_json, lambda _: console.show_paths(paths))


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(help="A bundle, an engine, or a checkpoint.")],
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Show what a bundle, an engine or a checkpoint holds; for engines, whether they run here. Opens no engine."""
    from nemo_edge import console, datasheet
    from nemo_edge.engines import inspect as run

    found = run(Path(path))
    if found is not None:
        _print(found, as_json, datasheet.show)
        return
    opened = _open(path, allow_pickle)
    from nemo_edge.checkpoint import summary

    _print(summary(opened), as_json, console.show_checkpoint)


@app.command()
def doctor(
    model: Annotated[str | None, typer.Option("--model", help="A local checkpoint whose need of memory and disk to estimate.")] = None,
    output: Annotated[Path, typer.Option("--output", help="Where its bundle would go.")] = Path(),
    as_json: Json = False,
) -> None:
    """Say what works on this machine, what does not fit together, and what to do. Exit code 4 when `build` cannot work."""
    from nemo_edge import console
    from nemo_edge.doctor import diagnose

    diagnosis = diagnose(model, output)
    _print(diagnosis, as_json, console.show_diagnosis)
    if not diagnosis.passed:
        raise typer.Exit(4)


def main() -> None:
    """Run the command line and leave with the exit code of DESIGN: 0 done, 1 a defect, 2 input, 3 a gate, 4 a dependency."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    stop_on_sigterm()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(arguments or ["--help"], standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this code, without a word
            raise KeyboardInterrupt
    except BaseException as error:
        if debug:
            raise
        code = exit_code(error)
    sys.exit(code if isinstance(code, int) else 0)


def _print(result: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    if not as_json:
        show(result)
        return
    content = json.loads(result.model_dump_json()) if hasattr(result, "model_dump_json") else result
    passed = getattr(result, "passed", None)
    print(json.dumps(content if passed is None else {**content, "passed": passed}, ensure_ascii=False))


def _open(path: str, allow_pickle: bool) -> Any:
    from nemo_edge.checkpoint import open_checkpoint

    return open_checkpoint(path, allow_pickle=allow_pickle)


def _localization(all_layers: bool) -> Any:
    from nemo_edge.recipe import LocalizationSettings

    return LocalizationSettings(layers="all" if all_layers else "paper")


def _localizer(checkpoint: str, statistics: Path, threshold: float | None, all_layers: bool, allow_pickle: bool) -> Any:
    from nemo_edge.localization import open_localizer

    return open_localizer(_open(checkpoint, allow_pickle), statistics, threshold, _localization(all_layers))


def _latency_settings(bundle: Path, given: dict[str, Any]) -> Any:
    """The bundle's own settings with those given on the command line."""
    from nemo_edge.bundle import open_bundle
    from nemo_edge.recipe import LatencySettings, from_options

    names = {"targets": "target", "batches": "batch", "sizes": "size", "compiled": "compile"}
    return from_options(LatencySettings, open_bundle(bundle).recipe.get("latency") or {}, given, names)


if __name__ == "__main__":
    main()
