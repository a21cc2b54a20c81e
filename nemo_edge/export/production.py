"""ONNX files and engines of a whole checkpoint, in a bundle's layout, part by part.

Asks for the work and does none of it: what needs PyTorch is named and done elsewhere (`system.processes`, `parts`), so that a large model's
weights and compilers have the memory to themselves.
"""

from __future__ import annotations

__all__ = [
    "Chosen",
    "OnnxFile",
    "PartJob",
    "compile_stage",
    "export_folder",
    "export_stage",
    "is_large",
    "neurons_stage",
    "plan_stage",
    "value_layers",
]

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from nemo_edge import __version__
from nemo_edge.backends import onnxfiles
from nemo_edge.backends.tensorrt.backend import compile_engine
from nemo_edge.backends.tensorrt.flavours import FLAVOURS
from nemo_edge.backends.tensorrt.plans import PlanFile
from nemo_edge.backends.tensorrt.profiles import plan_profiles
from nemo_edge.bundle.manifest import staging
from nemo_edge.export.quantization.half import for_tensorrt
from nemo_edge.graph.agreement import Dtype, Exported
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import NeuronSet, ValueLayer, read_neurons
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.random_weights import RandomSettings
from nemo_edge.recipe.settings import CheckpointSettings, ExportSettings
from nemo_edge.recipe.targets import EngineSettings, Flavour, PlanSettings, unfit_for_turing
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import check_folder, copy_tree, followed, weight_bytes
from nemo_edge.system.outputs import lock
from nemo_edge.system.processes import beside, run
from nemo_edge.system.progress import Advance, Progress

Layers = Literal["paper", "all"]
_LARGE_BYTES = 5 * 10**8
"""Weights that are worth processes of their own, which take seconds to start."""
_RANDOM_NEURONS = 16


@dataclass(frozen=True)
class PartJob:
    """One ONNX file: of which checkpoint, for which folder of a bundle, with which neurons silenced."""

    source: CheckpointSettings
    place: str
    neurons: NeuronSet
    settings: ExportSettings
    folder: Path
    provenance: dict[str, str]

    @property
    def component(self) -> str:
        """The component's name; the folders of both UNets are of one."""
        return "unet" if self.place in UNET_FOLDERS.values() else self.place

    @property
    def part(self) -> str:
        """The part of the checkpoint it is made from."""
        return "vae" if self.component == "vae_decoder" else self.component

    @property
    def masked(self) -> bool:
        """Whether neurons are silenced by an input."""
        return self.place == UNET_FOLDERS["masked"]

    @property
    def baked(self) -> NeuronSet:
        """The neurons that are silenced in the weights."""
        return self.neurons if self.place == UNET_FOLDERS["baked"] else NeuronSet.empty(self.neurons.layers)

    @property
    def facts(self) -> dict[str, str]:
        """What goes into the file itself."""
        silenced = self.neurons.content_hash() if self.place == UNET_FOLDERS["baked"] else ""
        return {**self.provenance, "component": self.component, "folder": self.place, "neurons": silenced}


class Chosen(NamedTuple):
    """The type an ONNX file is made in, and why it is not the recipe's."""

    dtype: Dtype
    note: str = ""


class OnnxFile(NamedTuple):
    """An ONNX file of a bundle: its path in it, and the type of its weights."""

    model: str
    dtype: Dtype

    @property
    def place(self) -> str:
        """Its folder."""
        return Path(self.model).parent.name


def is_large(source: CheckpointSettings) -> bool:
    """Whether a checkpoint's parts are to have processes of their own."""
    return weight_bytes(source.path) > _LARGE_BYTES


def value_layers(source: CheckpointSettings, layers: Layers, progress: Progress) -> tuple[ValueLayer, ...]:
    """The value layers of a checkpoint, whose weights are not read."""
    found: tuple[ValueLayer, ...] = run(
        is_large(source), "read the checkpoint", progress, "nemo_edge.export.parts.layers_of", source, layers
    )
    return found


def neurons_stage(source: CheckpointSettings, settings: RandomSettings, layers: Layers, folder: Path, progress: Progress) -> None:
    """`neurons.json` for random weights, which hold no memories: those of a file, or a few at random."""
    own = value_layers(source, layers, progress)
    chosen = read_neurons(settings.neurons, own) if settings.neurons else NeuronSet.empty(own).others(_RANDOM_NEURONS, settings.seed)
    chosen.save(folder / "neurons.json")


def export_stage(
    source: CheckpointSettings, settings: ExportSettings, neurons: NeuronSet, folder: Path, provenance: dict[str, str], progress: Progress
) -> list[Exported]:
    """ONNX files of every component in the bundle's layout; the UNet once for each variant."""
    large = is_large(source)
    with TemporaryDirectory(dir=folder, prefix=".answers") as temporary:
        answers, frame = Path(temporary), Path(temporary) / "outline"
        run(large, "read the checkpoint", progress, "nemo_edge.export.parts.outline", source, frame, settings.variants)
        texts = sorted(path.parent.name for path in frame.glob("text_encoder*/config.json"))
        places = (*texts, *(UNET_FOLDERS[variant] for variant in settings.variants), "vae_decoder")
        jobs = [PartJob(source, place, neurons, settings, folder, provenance) for place in places]
        with progress.task("export", len(jobs) + 1) as advance:
            first = [job for job in jobs if job.component != "vae_decoder"]  # which is asked beside the UNet
            chosen = run(large, "ask eager PyTorch", progress, "nemo_edge.export.parts.answer_parts", first, answers)
            advance(1)
            exported = _export_all(large, [(job, chosen.get(job.place)) for job in jobs], answers, advance, progress)
        copy_tree(frame, folder)
    for file in exported:
        if file.note:
            progress.note(file.note)
    return exported


def _export_all(
    large: bool, jobs: Sequence[tuple[PartJob, Chosen | None]], answers: Path, advance: Advance, progress: Progress
) -> list[Exported]:
    """Every file of `jobs`, in their order; the UNets, most of which is tracing on one core, with all others beside them.

    The masked UNet comes first, since the baked one is made from it.
    """
    unets = sorted(((job, chosen) for job, chosen in jobs if job.component == "unet"), key=lambda each: not each[0].masked)
    others = [(job, chosen) for job, chosen in jobs if job.component != "unet"]
    found: dict[str, Exported] = {}
    masked = UNET_FOLDERS["masked"]
    with beside(large, "export what is not the UNet", progress, "nemo_edge.export.parts.export_parts", others, answers) as rest:
        for job, chosen in unets:
            work = "nemo_edge.export.parts.export_part"
            found[job.place] = run(large, f"export {job.place}", progress, work, job, chosen, answers, found.get(masked))
            advance(1)
        found |= dict(zip((job.place for job, _ in others), rest(), strict=True))
        advance(len(others))
    return [found[job.place] for job, _ in jobs]


def export_folder(
    source: CheckpointSettings,
    settings: ExportSettings,
    neurons: Path | None,
    layers: Layers,
    folder: Path,
    progress: Progress,
) -> list[Exported]:
    """Export a checkpoint into a folder of its own, all or nothing; without `neurons`, a file, nothing is baked."""
    check_folder(folder)
    if neurons and neurons.suffix.lower() != ".csv":
        NeuronSet.load(neurons)  # what is wrong with the file itself is told before the checkpoint is opened
    with lock(folder), staging(folder) as staged:
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"the output folder {folder} is not empty: give another folder, or empty it")
        own = value_layers(source, layers, progress)
        chosen = read_neurons(neurons, own) if neurons else NeuronSet.empty(own)
        exported = export_stage(source, settings, chosen, staged, {"version": __version__}, progress)
        staged.chmod(0o755)
        os.replace(staged, followed(folder))
    return exported


def compile_stage(bundle: Path, engine: EngineSettings, files: Sequence[OnnxFile]) -> None:
    """How each ONNX file of a bundle is run by what runs such files, in `engines/`."""
    for file in files:
        onnxfiles.compile_engine(bundle, file.place, file.model, engine)


def plan_stage(
    bundle: Path, files: Sequence[OnnxFile], settings: PlanSettings, flavour: Flavour, folder: Path, progress: Progress
) -> list[PlanFile]:
    """TensorRT engines of a bundle's ONNX files, in `folder/engines`.

    Raises `InputError` for a component that is not there or of a type that a target lacks, or a profile that its graph does not take.
    """
    by_place = {file.place: file for file in files}
    places = settings.components or tuple(by_place)
    missing = [place for place in places if place not in by_place]
    if missing:
        raise InputError(f"{FLAVOURS[flavour].table}.components: {missing[0]!r} is not exported; there are {', '.join(by_place)}")
    why = unfit_for_turing(settings, {place: by_place[place].dtype for place in places})
    if why:
        raise InputError(why)
    config, found = Configuration.load(bundle, tokenizers=False), []
    for place in places:
        file = by_place[place]
        graph = open_graph(bundle / file.model)
        dims = {name: port.dims for name, port in graph.ports()[0].items()}
        profiles = plan_profiles(place, dims, settings.profiles, config)
        with for_tensorrt(graph, file.dtype, folder) as (source, dtype):
            found.append(compile_engine(bundle, place, file.model, flavour, settings, profiles, dtype, progress, folder, source))
    return found
