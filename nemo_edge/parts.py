"""One part of a checkpoint at a time: from its weights to an ONNX file that was held against eager float32.

What is done here is done in a process of its own where the weights are large (`apart`), and so takes and returns plain values.
"""

from __future__ import annotations

__all__ = ["export_part", "layers_of", "outline"]

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np

from nemo_edge.backends.torch import DTYPES
from nemo_edge.checkpoint import Checkpoint, Layers, open_parts, value_layers
from nemo_edge.component import UNET_FOLDERS, VALUE_MASK, Component
from nemo_edge.export import Disagreement, Exported, export_component
from nemo_edge.neurons import ValueLayer
from nemo_edge.production import PartJob
from nemo_edge.progress import Progress
from nemo_edge.recipe import CheckpointSettings
from nemo_edge.surgery import bake_, gate, silenced, value_rows
from nemo_edge.valueweights import SILENCED_ROWS, save_rows
from nemo_edge.verification import (
    Case,
    Feed,
    Reference,
    answered,
    largest_values,
    prompt_feeds,
    random_feeds,
    read_cases,
    trajectory,
    write_cases,
)

_LATENTS = "latents.safetensors"
_HIGHEST = {"fp32": inf, "fp16": 65504.0, "bf16": 3.39e38}
"""The largest number of each type; float32 has no other type to fall back on."""


def outline(source: CheckpointSettings, folder: Path, variants: tuple[str, ...], _: Progress) -> None:
    """Write a checkpoint's configurations into a bundle's layout; no weights are read."""
    open_parts(source).config.save(folder, [UNET_FOLDERS[variant] for variant in variants])


def layers_of(source: CheckpointSettings, layers: Layers, _: Progress) -> tuple[ValueLayer, ...]:
    """Return a checkpoint's value layers; no weights are read."""
    return value_layers(open_parts(source).unet, layers)


def export_part(job: PartJob, answers: Path, _: Progress) -> Exported:
    """Make one ONNX file: eager float32 answers first, then the weights are cast, written, and held against the answers.

    `answers` is a folder for what the parts after this one are asked. A part with values that the wanted type does not hold is
    made in float32. Raises `ExportError` for one that disagrees otherwise.
    """
    checkpoint = open_parts(job.source, (job.part,))
    kept = job.component in job.settings.fp32 or (job.component == "vae_decoder" and checkpoint.config.upcasts_decoder)
    dtype = "fp32" if kept else job.settings.dtype
    _keep_rows(job, checkpoint, dtype)
    with _graph(job, checkpoint) as component:
        with largest_values(component.module) as largest:
            write_cases(answers / f"{job.place}.safetensors", _cases(job, component, checkpoint, answers))
        why = next((f"{module} yields {value:.2g}" for module, value in largest.items() if not value <= _HIGHEST[dtype]), None)
        if why is None:
            component.module.to(DTYPES[dtype])
            try:
                return _exported(job, component, dtype, checkpoint.config.factor, answers)
            except Disagreement as error:
                if error.finite or dtype == "fp32":
                    raise
                why = str(error)
        note = f"{job.place} stays in fp32, {dtype} holds no more than {_HIGHEST[dtype]:.2g}: {why}"
    checkpoint = open_parts(job.source, (job.part,))
    _keep_rows(job, checkpoint, "fp32")
    with _graph(job, checkpoint) as component:
        return _exported(job, component, "fp32", checkpoint.config.factor, answers).model_copy(update={"note": note})


def _keep_rows(job: PartJob, checkpoint: Checkpoint, dtype: str) -> None:
    """Keep what will be baked out of a UNet, in its own type, so that it can be put back (`rebake`)."""
    if job.place == UNET_FOLDERS["baked"]:
        save_rows(job.folder / SILENCED_ROWS, value_rows(checkpoint.unet, job.baked, DTYPES[dtype]))


def _exported(job: PartJob, component: Component, dtype: str, factor: int, answers: Path) -> Exported:
    reference = Reference(read_cases(answers / f"{job.place}.safetensors"), lambda: _eager(job))
    settings = job.settings.model_copy(update={"dtype": dtype})
    baked = job.place == UNET_FOLDERS["baked"]
    return export_component(component, job.folder / job.place, settings, job.facts, factor, reference, job.neurons.layers if baked else ())


def _cases(job: PartJob, component: Component, checkpoint: Checkpoint, answers: Path) -> list[Case]:
    """What a file is asked and eager's answers: random feeds, and for a type that may overflow the way to a picture."""
    config, settings = checkpoint.config, job.settings
    cases = answered(component, random_feeds(component, settings, config.factor))
    if settings.dtype == "fp32" or settings.batch not in (None, 2):
        return cases
    if job.component in config.text_encoder_names:
        return cases + answered(component, {"a prompt": prompt_feeds(config)[config.text_encoder_names.index(job.component)]})
    if job.component == "unet":
        texts = [read_cases(answers / f"{name}.safetensors")[-1] for name in config.text_encoder_names]
        along, latents = trajectory(config, texts, checkpoint.unet_component(), settings)
        write_cases(answers / _LATENTS, [Case("its latents", latents, {})] if latents else [])
        return cases + [replace(case, feed={**case.feed, **_ones(component, case)}) for case in along]
    return cases + answered(component, {case.name: case.feed for case in read_cases(answers / _LATENTS)})


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
