"""The parts of a checkpoint: what eager float32 answers, and from their weights to ONNX files that were held against it.

What is done here is done in a process of its own where the weights are large (`system.processes`), and so takes and returns plain values.
"""

from __future__ import annotations

__all__ = ["answer_parts", "export_part", "export_parts", "layers_of", "outline"]

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np
import torch

from nemo_edge.backends.torch import DTYPES
from nemo_edge.export._component import Disagreement, export_baked, export_component
from nemo_edge.export._verification import (
    Case,
    Feed,
    Reference,
    answered,
    check_finite,
    largest_values,
    prompt_feeds,
    random_feeds,
    read_cases,
    trajectory,
    write_cases,
)
from nemo_edge.export.production import Chosen, PartJob
from nemo_edge.graph.agreement import Exported
from nemo_edge.graph.valueweights import SILENCED_ROWS, save_rows
from nemo_edge.model.checkpoint import Checkpoint, Layers, open_parts, value_layers
from nemo_edge.model.component import VALUE_MASK, Component
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import ValueLayer
from nemo_edge.model.surgery import bake_, gate, silenced, value_rows
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.system.environment import cores
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Progress

_LATENTS = "latents.safetensors"
_HIGHEST = {"fp32": inf, "fp16": 65504.0, "bf16": 3.39e38}
"""The largest number of each type; float32 has no other type to fall back on."""


def outline(source: CheckpointSettings, folder: Path, variants: tuple[str, ...], _: Progress) -> None:
    """Write a checkpoint's configurations into a bundle's layout; no weights are read."""
    open_parts(source).config.save(folder, [UNET_FOLDERS[variant] for variant in variants])


def layers_of(source: CheckpointSettings, layers: Layers, _: Progress) -> tuple[ValueLayer, ...]:
    """Return a checkpoint's value layers; no weights are read."""
    return value_layers(open_parts(source).unet, layers)


def answer_parts(jobs: Sequence[PartJob], answers: Path, _: Progress) -> dict[str, Chosen]:
    """Ask eager float32 all that the files of `jobs` will be asked, and keep its answers in the folder `answers`.

    Return the type that each file is made in: the recipe's, or float32 for one that is kept so and for one with values that the
    recipe's type does not hold. Text encoders come before the UNet and it before the decoder, which is asked what they lead to.
    """
    return {place: chosen for part in dict.fromkeys(job.part for job in jobs) for place, chosen in _answered(jobs, part, answers)}


def _answered(jobs: Sequence[PartJob], part: str, answers: Path) -> list[tuple[str, Chosen]]:
    """Ask one part, whose weights are given up then."""
    own = [job for job in jobs if job.part == part]
    checkpoint, found = open_parts(own[0].source, (part,)), []
    for job in own:
        with _graph(job, checkpoint) as component, largest_values(component.module) as largest:
            cases = _cases(job, component, checkpoint, answers)
        check_finite(job.place, cases)
        write_cases(answers / f"{job.place}.safetensors", cases)
        found.append((job.place, _chosen(job, checkpoint.config, largest)))
    return found


def _chosen(job: PartJob, config: Configuration, largest: Mapping[str, float]) -> Chosen:
    """The type a file is made in, by the largest value that each module yields in eager float32."""
    if job.component in job.settings.fp32 or (job.component == "vae_decoder" and config.upcasts_decoder):
        return Chosen("fp32")
    highest = _HIGHEST[job.settings.dtype]
    why = next((f"{module} yields {value:.2g}" for module, value in largest.items() if not value <= highest), None)
    return Chosen(job.settings.dtype) if why is None else _fallback(job, why)


def _fallback(job: PartJob, why: str) -> Chosen:
    dtype = job.settings.dtype
    return Chosen("fp32", f"{job.place} stays in fp32, {dtype} holds no more than {_HIGHEST[dtype]:.2g}: {why}")


def export_parts(jobs: Sequence[tuple[PartJob, Chosen | None]], answers: Path, progress: Progress) -> list[Exported]:
    """Make some ONNX files, one after the other; eager is asked before each whose type is not known yet.

    PyTorch takes no more threads than there are cores for this process, since more would wait for each other.
    """
    torch.set_num_threads(min(torch.get_num_threads(), cores()))
    return [export_part(job, chosen or _answered([job], job.part, answers)[0][1], answers, None, progress) for job, chosen in jobs]


def export_part(job: PartJob, chosen: Chosen, answers: Path, masked: Exported | None, _: Progress) -> Exported:
    """Make one ONNX file: weights in its type are traced, written, and the file held against the `answers` of eager float32.

    The baked UNet of a bundle that has the `masked` one, in the same type, is made from that instead of traced. A file that yields no
    numbers is made again in float32. Raises `ExportError` for one that disagrees otherwise.
    """
    try:
        if masked is not None and masked.dtype == chosen.dtype:
            with suppress(InputError):  # its weights are not their layers' alone
                return _baked(job, chosen, answers, job.folder / masked.model)
        return _exported(job, chosen, answers)
    except Disagreement as error:
        if error.finite or chosen.dtype == "fp32":
            raise
        chosen = _fallback(job, str(error))
    return _exported(job, chosen, answers)


def _baked(job: PartJob, chosen: Chosen, answers: Path, masked: Path) -> Exported:
    settings = job.settings.model_copy(update={"dtype": chosen.dtype})
    found = export_baked(masked, job.baked, job.folder / job.place, settings, job.facts, _reference(job, answers))
    return found.model_copy(update={"note": chosen.note})


def _reference(job: PartJob, answers: Path) -> Reference:
    return Reference(read_cases(answers / f"{job.place}.safetensors"), lambda: _eager(job))


def _exported(job: PartJob, chosen: Chosen, answers: Path) -> Exported:
    checkpoint = open_parts(job.source, (job.part,), DTYPES[chosen.dtype])
    baked = job.place == UNET_FOLDERS["baked"]
    if baked:  # kept in the file's own type, so that they can be put back (`rebake`)
        rows = value_rows(checkpoint.unet, job.baked, DTYPES[chosen.dtype])
        if not rows or any(array.any() for array in rows.values()):  # of hardened weights they are zero
            save_rows(job.folder / SILENCED_ROWS, rows)
    settings, layers = job.settings.model_copy(update={"dtype": chosen.dtype}), job.neurons.layers if baked else ()
    with _graph(job, checkpoint) as component:
        found = export_component(
            component, job.folder / job.place, settings, job.facts, checkpoint.config.factor, _reference(job, answers), layers
        )
    return found.model_copy(update={"note": chosen.note})


def _cases(job: PartJob, component: Component, checkpoint: Checkpoint, answers: Path) -> list[Case]:
    """What a file is asked and eager's answers: random feeds, and for a type that may overflow the way to a picture.

    Together they have two numbers of rows or more, and two sizes.
    """
    config, settings = checkpoint.config, job.settings

    def random(*batches: int) -> list[Case]:
        return answered(component, random_feeds(component, settings, config.factor, batches))

    if settings.dtype == "fp32" or settings.batch not in (None, 2):
        return random(1, 3)
    if job.component in config.text_encoder_names:
        return random(1, 3) + answered(component, {"a prompt": prompt_feeds(config)[config.text_encoder_names.index(job.component)]})
    if job.component == "unet":
        texts = [read_cases(answers / f"{name}.safetensors")[-1] for name in config.text_encoder_names]
        along, latents = trajectory(config, texts, checkpoint.unet_component(), settings)
        write_cases(answers / _LATENTS, [Case("its latents", latents, {})] if latents else [])
        return random(1) + [replace(case, feed={**case.feed, **_ones(component, case)}) for case in along]
    return random(3) + answered(component, {case.name: case.feed for case in read_cases(answers / _LATENTS)})


def _ones(component: Component, case: Case) -> Feed:
    """The mask that keeps every neuron, where the component takes one."""
    width = next((int(port.dims[1]) for port in component.inputs if port.name == VALUE_MASK), None)
    return {} if width is None else {VALUE_MASK: np.ones((len(case.feed["sample"]), width), np.float32)}


@contextmanager
def _graph(job: PartJob, checkpoint: Checkpoint) -> Iterator[Component]:
    """The component as this file has it, within the context."""
    component = next(c for c in checkpoint.components() if c.name == job.component)
    if job.component != "unet":
        yield component
        return
    with silenced(checkpoint.unet, job.baked):
        yield gate(component, checkpoint.unet, job.neurons.layers) if job.masked else component


def _eager(job: PartJob) -> Component:
    """The component in float32, its neurons silenced for good."""
    checkpoint = open_parts(job.source, (job.part,))
    bake_(checkpoint.unet, job.baked)
    return ExitStack().enter_context(_graph(job, checkpoint))
