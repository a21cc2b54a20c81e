"""The command line: translates options into settings, calls one library function, prints one result.

Heavy imports are inside the commands, so that `--help` is immediate.
"""

from __future__ import annotations

__all__ = ["app", "main"]

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nemo_edge import __version__
from nemo_edge.cli import bundle as cli_bundle
from nemo_edge.cli import serving as cli_serving
from nemo_edge.cli.clean import clean
from nemo_edge.cli.hardening import harden
from nemo_edge.cli.init import init
from nemo_edge.cli.options import AllowPickle, Checkpoint, ClipSkip, Device, Json, Loras, Summary, loras_of, open_model, print_result
from nemo_edge.cli.panels import Panels, add
from nemo_edge.system.errors import InputError
from nemo_edge.system.exits import INTERRUPTED, exit_code, stop_on_sigterm

app = typer.Typer(
    name="nemo-edge",
    cls=Panels,
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Prompts = Annotated[Path, typer.Argument(help="Prompts: .txt, .csv (column Caption or prompt) or .jsonl.")]
AllLayers = Annotated[bool, typer.Option("--all-layers", help="Value layers of the up blocks too, not only the paper's.")]
Statistics = Annotated[Path, typer.Option("--statistics", help="What `nemo-edge calibrate` wrote, or the official .pt file.")]


def _threshold(tau: float | None) -> float | None:
    from nemo_edge.recipe.settings import check_threshold

    return None if tau is None else check_threshold(tau, "--threshold", "leave it out, and the one in the statistics is taken")


ThresholdOption = Annotated[float | None, typer.Option("--threshold", callback=_threshold, help="τ; else the one in the statistics.")]


@app.callback()
def common(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
) -> None:
    """Ship text-to-image diffusion models as engines without their memorization neurons."""
    if version:
        print(f"nemo-edge {__version__}")
        raise typer.Exit


def build(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a TOML file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and check everything, say what would run, write nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Build again beside the bundle, and say whether it is the same model.")] = False,
    random: Annotated[str | None, typer.Option("--random-weights", help="Not the checkpoint: sd15, sd21, sdxl, bk-sdm-small.")] = None,
    neurons: Annotated[Path | None, typer.Option("--neurons", help="With random weights: what is silenced (.json, .csv).")] = None,
    summary: Summary = None,
    as_json: Json = False,
) -> None:
    """Build a bundle with its evidence.

    Calibrate, localize, export, compile, measure, judge. Exit code 3 when a gate fails, and with --check when what is built
    again is another model.
    """
    from nemo_edge.cli import console
    from nemo_edge.recipe.recipe import load_recipe, with_random_weights
    from nemo_edge.release.build import build as run
    from nemo_edge.release.build import plan

    settings = with_random_weights(load_recipe(recipe, random=random is not None), random, neurons)
    if summary is not None and settings.random_weights is not None:
        raise typer.BadParameter("--summary: nothing is measured on random weights that could be summarized")
    if check:
        if dry_run or summary is not None:
            raise typer.BadParameter("--check builds again and writes nothing: leave out --dry-run and --summary")
        _check_again(settings, as_json)
        return
    if dry_run:
        from nemo_edge.cli.plans import show_plan

        print_result(plan(settings, console.Bars()), as_json, show_plan)
        return
    if summary is not None:
        from nemo_edge.release.review import check_outputs, summarize

        check_outputs(settings.output, summary)
    result = run(settings, console.Bars(), file=recipe.name)
    if summary is not None:
        summarize(settings.output, summary)
    print_result(result, as_json, console.show_build)
    if not result.passed:
        raise typer.Exit(3)


def _check_again(settings: Any, as_json: bool) -> None:
    """A recipe's bundle, built again and compared."""
    from nemo_edge.cli import console
    from nemo_edge.cli.plans import show_reproduced
    from nemo_edge.release.reproduce import reproduce

    result = reproduce(settings, console.Bars())
    print_result(result, as_json, show_reproduced)
    if not result.passed:
        raise typer.Exit(3)


def calibrate(
    checkpoint: Checkpoint,
    prompts: Prompts,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the statistics go, a .safetensors file.")],
    limit: Annotated[int | None, typer.Option("--limit", min=2, help="Use the first so many prompts.")] = None,
    all_layers: AllLayers = False,
    device: Device = "cpu",
    lora: Loras = None,
    clip_skip: ClipSkip = 0,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Measure statistics and the threshold τ on general prompts."""
    from nemo_edge.cli import console
    from nemo_edge.recipe.prompts import distinct, read_prompts
    from nemo_edge.recipe.settings import LocalizationSettings
    from nemo_edge.system.files import check_file

    said: list[str] = []
    texts = [p.text for p in distinct(read_prompts(prompts, tell=said.append))[:limit]]
    if limit is not None and len(texts) < limit:
        raise InputError(
            f"prompts file {prompts} holds {len(texts)} different prompts, fewer than --limit {limit}: leave --limit out, or add some"
        )
    check_file(out)
    from nemo_edge.localization.calibration import calibrate as run

    bars = console.Bars()
    for line in said:
        bars.note(line)
    with bars.task("calibrate", len(texts)) as advance:
        model = open_model(checkpoint, allow_pickle, device, lora, clip_skip)
        calibration = run(model, texts, LocalizationSettings(layers=_layers(all_layers)), advance)
    calibration.save(out)
    facts = {**calibration.provenance.model_dump(mode="json"), "above_rate": calibration.above_rate}
    print_result(facts, as_json, lambda _: console.show_calibration(calibration, out))


def detect(
    checkpoint: Checkpoint,
    prompts: Prompts,
    statistics: Statistics,
    general: Annotated[Path | None, typer.Option("--general", help="Prompts known not to be memorized, for a ROC curve.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for detection.jsonl and roc.json.")] = None,
    threshold: ThresholdOption = None,
    all_layers: AllLayers = False,
    device: Device = "cpu",
    lora: Loras = None,
    clip_skip: ClipSkip = 0,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Say which prompts are memorized.

    With --out an interrupted run goes on where it stopped. Where the list says which prompts are memorized (column type: VM, TM) and which
    are not (N), detectors are compared.
    """
    from nemo_edge.cli import console
    from nemo_edge.localization.promptlists import detect as run

    model = _model(device, allow_pickle, lora, clip_skip, all_layers)
    result = run(checkpoint, prompts, statistics, out, general=general, threshold=threshold, progress=console.Bars(), **model)
    from nemo_edge.cli.findings import show_detection

    print_result(result, as_json, lambda found: show_detection(found, out))


def localize(
    checkpoint: Checkpoint,
    prompts: Prompts,
    statistics: Statistics,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for localization.jsonl and neurons.json.")],
    mode: Annotated[str, typer.Option("--mode", help="paper: the official code's decisions; fast: group testing.")] = "paper",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the UNet: fp32, fp16, bf16; close decisions in fp32.")] = "fp32",
    group_by: Annotated[str, typer.Option("--group-by", help="What has one set: prompt, or cluster of near-duplicates.")] = "prompt",
    whole: Annotated[bool, typer.Option("--union", help="One set for the whole list, refined together.")] = False,
    paraphrases: Annotated[int, typer.Option("--paraphrases", min=0, help="Variants of each prompt that must not leak either.")] = 0,
    threshold: ThresholdOption = None,
    all_layers: AllLayers = False,
    device: Device = "cpu",
    lora: Loras = None,
    clip_skip: ClipSkip = 0,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Find the memorization neurons of each prompt.

    An interrupted run goes on where it stopped.
    """
    from nemo_edge.cli import console
    from nemo_edge.localization.promptlists import localize as run
    from nemo_edge.recipe.recipe import SettingError

    if whole and group_by != "prompt":
        raise typer.BadParameter("--union: the whole list has one set, so leave --group-by out")
    model = _model(device, allow_pickle, lora, clip_skip, all_layers)
    search: dict[str, Any] = {"mode": mode, "dtype": dtype, "group_by": "list" if whole else group_by, "paraphrases": paraphrases}
    try:
        result = run(checkpoint, prompts, statistics, out, threshold=threshold, progress=console.Bars(), **model, **search)
    except SettingError as error:
        raise error.of_option({"group_by": "group-by"}) from error
    from nemo_edge.cli.findings import show_localizations

    print_result(result, as_json, lambda found: show_localizations(found.results, found.groups, out))


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the ONNX files; must be absent or empty.")],
    neurons: Annotated[Path | None, typer.Option("--neurons", help="neurons.json or the official .csv; else nothing is baked.")] = None,
    masked: Annotated[bool, typer.Option("--masked", help="Give the UNet a value_mask input instead of baking.")] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32, fp16 or bf16.")] = "fp32",
    opset: Annotated[int, typer.Option("--opset", min=18, max=24, help="ONNX opset.")] = 23,
    all_layers: AllLayers = False,
    lora: Loras = None,
    clip_skip: ClipSkip = 0,
    allow_pickle: AllowPickle = False,
    as_json: Json = False,
) -> None:
    """Export a checkpoint to ONNX, checked against eager PyTorch."""
    from nemo_edge.cli import console
    from nemo_edge.export.production import export_folder
    from nemo_edge.recipe.recipe import from_options
    from nemo_edge.recipe.settings import CheckpointSettings, ExportSettings

    settings = from_options(ExportSettings, {"variants": ["masked" if masked else "baked"]}, {"dtype": dtype, "opset": opset})
    source = CheckpointSettings(path=checkpoint, allow_pickle=allow_pickle, loras=loras_of(lora), clip_skip=clip_skip)
    exported = export_folder(source, settings, neurons, _layers(all_layers), out, console.Bars())
    print_result(
        {"out": str(out), "exported": [e.model_dump(mode="json") for e in exported]}, as_json, lambda _: console.show_export(exported, out)
    )


def doctor(
    model: Annotated[str | None, typer.Option("--model", help="A local checkpoint whose need of memory and disk to estimate.")] = None,
    output: Annotated[Path, typer.Option("--output", help="Where its bundle would go.")] = Path(),
    as_json: Json = False,
) -> None:
    """Say what works on this machine, and what to do.

    What does not fit together is named. Exit code 4 when `build` cannot work.
    """
    from nemo_edge.cli import console
    from nemo_edge.release.doctor import diagnose

    diagnosis = diagnose(model, output)
    print_result(diagnosis, as_json, console.show_diagnosis)
    if not diagnosis.passed:
        raise typer.Exit(4)


for function in (init, build, calibrate, detect, localize, harden, export, doctor, clean):
    add(app, function)
cli_bundle.register(app)
cli_serving.register(app)


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


def _model(device: str, allow_pickle: bool, lora: list[str] | None, clip_skip: int, all_layers: bool) -> dict[str, Any]:
    """The options by which a checkpoint is opened and looked at, as the library calls them."""
    layers, loras = _layers(all_layers), loras_of(lora)
    return {"device": device, "allow_pickle": allow_pickle, "layers": layers, "loras": loras, "clip_skip": clip_skip}


def _layers(all_layers: bool) -> Literal["paper", "all"]:
    return "all" if all_layers else "paper"
