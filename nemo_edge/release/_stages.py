"""The stages of a build, as data: what each is called, what its key is made of, and the function that does it.

A stage reads the recipe, its inputs and the bundle as far as it is made, and leaves files in a folder of its own, which become a
part of the bundle. To add one is to add an entry to `STAGES`; which of them must run is for `_cache` to find out.
"""

from __future__ import annotations

__all__ = [
    "HARDENED",
    "STAGES",
    "LazyCheckpoint",
    "Stage",
    "Work",
    "attack",
    "calibrate",
    "choose_neurons",
    "compile_plans",
    "describe_sessions",
    "export",
    "find_ranges",
    "harden",
    "localize",
    "make_policies",
    "measure",
    "quantize",
    "stage_keys",
    "stages_of",
    "take_times",
    "write_steps",
]

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_edge import __version__
from nemo_edge.export.production import OnnxFile, compile_stage, export_stage, is_large, neurons_stage, plan_stage
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import Recipe
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.recipe.targets import FLAVOUR_OF
from nemo_edge.release import _keys as keys
from nemo_edge.release._inputs import Inputs
from nemo_edge.system.files import sha256_json, write_atomically
from nemo_edge.system.outputs import remove
from nemo_edge.system.processes import rest
from nemo_edge.system.progress import Progress
from nemo_edge.system.reading import read_json

if TYPE_CHECKING:
    from nemo_edge.export.quantization.quantize import Files
    from nemo_edge.model import checkpoint as opened

HARDENED = "checkpoint"
"""The folder of hardened weights, which a bundle has in its ONNX files alone."""
_EXPORTED = "exported.json"
"""What the export says of its files; the bundle has it in other words."""


class LazyCheckpoint:
    """The checkpoint in float32, opened by the first stage that needs it."""

    def __init__(self, source: CheckpointSettings) -> None:
        self.source = source
        self._open: opened.Checkpoint | None = None

    def open(self) -> opened.Checkpoint:
        """Return it, open."""
        if self._open is None:
            from nemo_edge.model.checkpoint import open_source

            self._open = open_source(self.source)
        return self._open

    def close(self) -> None:
        """Give its memory to what comes next."""
        self._open = None


@dataclass(frozen=True)
class Work:
    """What a stage gets."""

    recipe: Recipe
    inputs: Inputs
    checkpoint: LazyCheckpoint
    bundle: Path
    """The bundle as far as the stages before have made it."""
    progress: Progress
    results: dict[str, Path] = field(default_factory=dict)
    """The folder of each stage that is done: it also has what is not for the bundle."""
    file: str = ""
    """Name of the recipe's file; empty for a recipe from code."""

    @property
    def shipped(self) -> LazyCheckpoint:
        """The checkpoint that engines are made of: the hardened one, where the recipe has it hardened."""
        if self.recipe.hardening is None or self.recipe.random_weights is not None:
            return self.checkpoint
        return LazyCheckpoint(self.recipe.checkpoint.model_copy(update={"path": str(self.results["harden"] / HARDENED)}))

    @property
    def onnx_files(self) -> list[OnnxFile]:
        """The ONNX files of the bundle."""
        return [OnnxFile(file["model"], file["dtype"]) for file in read_json(self.results["export"] / _EXPORTED)]


@dataclass(frozen=True)
class Stage:
    """One stage: `work` fills a folder, which is kept until `key` returns something else."""

    name: str
    key: Callable[[keys.Given], object] | None
    """None: it costs nothing, so that it is done each time, and its folder is the bundle."""
    work: Callable[[Work, Path], object]
    wanted: Callable[[Recipe], bool] = lambda _: True
    goes_on: bool = False
    """Whether it takes up what an interrupted run of it has left in the folder, which it gets empty otherwise."""
    private: tuple[str, ...] = ()
    """Names in its folder that are not for the bundle."""
    does: str = ""
    """What it does, in a few words for people."""
    apart: bool = False
    """Whether it only says what engines do, so that nothing of it is a part of the bundle's identity."""


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that a recipe's build has, in order."""
    return [stage for stage in STAGES if stage.wanted(recipe)]


def stage_keys(recipe: Recipe, inputs: Inputs) -> dict[str, str]:
    """The key of each stage of a recipe's build whose results are kept."""
    found: dict[str, str] = {}
    for stage in stages_of(recipe):
        if stage.key is not None:
            found[stage.name] = sha256_json(stage.key(keys.Given(recipe, inputs, found)))
    return found


def calibrate(work: Work, folder: Path) -> None:
    """Statistics of the neurons on general prompts, and τ: `calibration.safetensors`."""
    from nemo_edge.localization.stages import calibrate_stage

    recipe, general = work.recipe, work.inputs.general
    calibrate_stage(work.checkpoint.open(), recipe.calibration, recipe.localization, general, folder, work.progress)


def localize(work: Work, folder: Path) -> None:
    """The neurons of each memorized prompt, and all of them: `localization.jsonl`, `neurons.json`."""
    from nemo_edge.localization.calibration import Calibration
    from nemo_edge.localization.stages import localize_stage

    calibration = Calibration.load(work.bundle / "calibration.safetensors")
    localize_stage(work.checkpoint.open(), calibration, work.recipe.localization, work.inputs.memorized, folder, work.progress)


def choose_neurons(work: Work, folder: Path) -> None:
    """`neurons.json` of random weights, which hold no memories."""
    assert work.recipe.random_weights is not None
    neurons_stage(work.recipe.checkpoint, work.recipe.random_weights, work.recipe.localization.layers, folder, work.progress)


def make_policies(work: Work, folder: Path) -> None:
    """What a server can be asked to silence: `policies.json`."""
    from nemo_edge.release.bundlepolicies import policies_stage

    general = [prompt.text for prompt in work.inputs.general]
    policies_stage(work.checkpoint.open(), work.inputs.memorized, general, work.bundle, folder, work.progress)


def harden(work: Work, folder: Path) -> None:
    """The weights taught to hold less of the memories: `hardening.json`, and the checkpoint."""
    from nemo_edge.hardening.harden import HARDENING, harden_opened, work_of
    from nemo_edge.model.checkpoint import open_source

    assert work.recipe.hardening is not None
    work.checkpoint.close()
    general, neurons = [prompt.text for prompt in work.inputs.general], NeuronSet.load(work.bundle / "neurons.json")
    settings, sampling, output = work.recipe.hardening, work.recipe.sampling, folder / HARDENED
    if not (output / HARDENING).is_file():  # it appears whole, and the folder is of these very inputs
        checkpoint = open_source(work.recipe.checkpoint)
        harden_opened(checkpoint, neurons, work.inputs.memorized, general, output, settings, sampling, work.progress)
    remove(work_of(output))  # of a run that was killed when it was done
    shutil.copyfile(output / HARDENING, folder / HARDENING)


def export(work: Work, folder: Path) -> None:
    """ONNX files of every component, each compared with eager."""
    if is_large(work.recipe.checkpoint):
        work.checkpoint.close()  # its memory is for the processes that export
    neurons = NeuronSet.load(work.bundle / "neurons.json")
    provenance = {"version": __version__, "checkpoint": sha256_json(work.inputs.checkpoint)}
    exported = export_stage(work.shipped.source, work.recipe.export, neurons, folder, provenance, work.progress)
    write_atomically(folder / _EXPORTED, json.dumps([e.model_dump(mode="json") for e in exported], indent=1) + "\n")


def find_ranges(work: Work, folder: Path) -> None:
    """How large activations become while general prompts' pictures are drawn: `ranges.json`."""
    from nemo_edge.export.quantization import quantize as quantization

    assert work.recipe.quantization is not None
    quantization.find_ranges(_unets(work), work.recipe.quantization.keep, folder, work.progress)


def quantize(work: Work, folder: Path) -> None:
    """The UNets' files in fewer bits, in place of those in float32: `quantization.json`, and the files."""
    from nemo_edge.export.quantization import quantize as quantization
    from nemo_edge.export.quantization.ranges import Ranges

    settings = work.recipe.quantization
    assert settings is not None
    files, path = _unets(work), settings.ranges or work.bundle / quantization.RANGES
    ranges = Ranges.read(path) if settings.activations else None
    if ranges is not None and settings.ranges is not None:
        quantization.check_ranges(ranges, path, files)
    quantization.quantize_files(files, settings, ranges, folder, {"version": __version__}, work.progress)


def _unets(work: Work) -> Files:
    from nemo_edge.export.quantization.quantize import PROMPT, Files

    recipe, settings = work.recipe, work.recipe.quantization
    assert settings is not None
    work.checkpoint.close()  # its memory is for the graphs
    return Files(
        bundle=work.results["export"],
        variants=recipe.export.variants,
        prompts=tuple(prompt.text for prompt in work.inputs.general[: settings.drawn(recipe.sampling.steps)]) or (PROMPT,),
        sampling=recipe.sampling,
        threads=recipe.engine.threads,
        layers=NeuronSet.load(work.bundle / "neurons.json").layers,
        source=sha256_json([work.inputs.checkpoint, work.results["harden"].name if "harden" in work.results else None]),
    )


def compile_plans(table: str, work: Work, folder: Path) -> None:
    """TensorRT engines, as a table of the recipe wants them."""
    rest()  # the compiler needs the memory, and none of the libraries
    plan_stage(work.bundle, work.onnx_files, getattr(work.recipe, table), FLAVOUR_OF[table], folder, work.progress)


def describe_sessions(work: Work, folder: Path) -> None:
    """How each ONNX file is run by ONNX Runtime or OpenVINO: `engines/<component>.<backend>.<provider or device>.json`."""
    compile_stage(folder, work.recipe.engine, work.onnx_files)


def write_steps(work: Work, folder: Path) -> None:
    """The sampler's steps as numbers, for where diffusers is not installed: `scheduler/steps.json`."""
    from nemo_edge.model.configuration import Configuration
    from nemo_edge.sampling.steptable import write_table

    write_table(folder, Configuration.load(folder, tokenizers=False), work.recipe.sampling)


def measure(work: Work, folder: Path) -> None:
    """What the engines do with the memories and with everybody else's pictures: `measurement.json`, and the pictures."""
    from nemo_edge.localization.calibration import Calibration
    from nemo_edge.localization.localizer import read_results
    from nemo_edge.measure.examination import Subject, examine

    found = {result.prompt: result for result in read_results(work.bundle / "localization.jsonl")}
    subject = Subject(
        checkpoint=work.checkpoint.open(),
        bundle=work.bundle,
        recipe=work.recipe,
        memorized=work.inputs.memorized,
        general=work.inputs.held_out,
        localizations=[found[prompt.text] for prompt in work.inputs.memorized],
        calibration=Calibration.load(work.bundle / "calibration.safetensors"),
        neurons=NeuronSet.load(work.bundle / "neurons.json"),
        hardened=work.shipped.open() if work.shipped is not work.checkpoint else None,
    )
    examine(subject, folder, work.progress)


def attack(work: Work, folder: Path) -> None:
    """What comes back of the memories under attack: `attack.json`."""
    from nemo_edge.measure.attacks.campaign import attack_bundle

    assert work.recipe.attack is not None
    hardened = work.shipped.open() if work.shipped is not work.checkpoint else None
    attack_bundle(work.checkpoint.open(), work.bundle, work.recipe, work.inputs.memorized, folder, work.progress, hardened)


def take_times(work: Work, folder: Path) -> None:
    """How fast the engines are, side by side with eager: `latency.json`."""
    from nemo_edge.measure.bench import bench, runnables

    recipe, settings = work.recipe, work.recipe.latency
    assert settings is not None
    work.checkpoint.close()  # its memory is for the processes that are timed
    found = bench(runnables(work.bundle, recipe, settings, recipe.checkpoint.path), recipe.sampling, settings, work.progress)
    write_atomically(folder / "latency.json", found.model_dump_json(indent=1) + "\n")


def _random(recipe: Recipe) -> bool:
    return recipe.random_weights is not None


def _trained(recipe: Recipe) -> bool:
    return recipe.random_weights is None


def _hardened(recipe: Recipe) -> bool:
    return _trained(recipe) and recipe.hardening is not None


def _masked(recipe: Recipe) -> bool:
    return _trained(recipe) and "masked" in recipe.export.variants


def _attacked(recipe: Recipe) -> bool:
    return _trained(recipe) and recipe.attack is not None


def _quantized(recipe: Recipe) -> bool:
    return recipe.quantization is not None


def _observed(recipe: Recipe) -> bool:
    return recipe.quantization is not None and recipe.quantization.finds_ranges


def _has(table: str, recipe: Recipe) -> bool:
    return getattr(recipe, table) is not None


STAGES = (
    Stage("calibrate", keys.of_calibrate, calibrate, _trained, does="statistics of neurons, and τ"),
    Stage("localize", keys.of_localize, localize, _trained, goes_on=True, does="neurons of each memorized prompt"),
    Stage("localize", keys.of_random_neurons, choose_neurons, _random, does="neurons of random weights"),
    Stage("policies", keys.of_policies, make_policies, _masked, does="what a server may silence"),
    Stage("harden", keys.of_hardening, harden, _hardened, goes_on=True, private=(HARDENED,), does="weights that hold less of them"),
    Stage("export", keys.of_export, export, private=(_EXPORTED,), does="ONNX files, held against eager"),
    Stage("ranges", keys.of_ranges, find_ranges, _observed, goes_on=True, does="how large activations become"),
    Stage("quantize", keys.of_quantization, quantize, _quantized, does="the UNet in fewer bits"),
    *(
        Stage(table, partial(keys.of_plans, table), partial(compile_plans, table), partial(_has, table), does="engines for NVIDIA's GPUs")
        for table in FLAVOUR_OF
    ),
    Stage("sessions", None, describe_sessions),
    Stage("steps", None, write_steps),
    Stage("measure", keys.of_measure, measure, _trained, goes_on=True, private=("pictures",), does="pictures with and without", apart=True),
    Stage("attack", keys.of_attack, attack, _attacked, goes_on=True, private=("attack.jsonl",), does="what attacks bring back", apart=True),
    Stage("latency", keys.of_latency, take_times, partial(_has, "latency"), does="times beside eager PyTorch", apart=True),
)
"""Every stage there is, in order."""
