"""Opens whole pipelines: eager PyTorch from a checkpoint, engines from a bundle, each component by its name."""

from __future__ import annotations

__all__ = ["UNMITIGATED", "eager_pipeline", "has_unmitigated", "open_engines", "open_pipeline", "original_weights"]

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from nemo_edge.backends import onnxfiles
from nemo_edge.backends.base import Runner
from nemo_edge.backends.readiness import check_plans
from nemo_edge.backends.tensorrt import backend as tensorrt
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.sampling.loop import Pipeline
from nemo_edge.sampling.steptable import read_table
from nemo_edge.system.errors import InputError

if TYPE_CHECKING:
    from torch.nn import Module

    from nemo_edge.model.checkpoint import Checkpoint

UNMITIGATED = "unmitigated"
"""Name of the engine that has every memory still: of an ONNX file the baked graph with the value weights of the masked one; of
TensorRT, whose engines keep their weights, the masked one, which silences nothing unless it is told to."""


def open_pipeline(config: Configuration, bundle: Path, engine: EngineSettings, variant: str, stack: ExitStack) -> Pipeline:
    """Open all engines of a variant, or the unmitigated ones, as `open_engines` does."""
    texts = config.text_encoder_names
    found = open_engines(config, bundle, engine, variant, stack, (*texts, "unet", "vae_decoder"))
    return Pipeline(config, tuple(found[name] for name in texts), found["unet"], found["vae_decoder"], table=read_table(bundle))


def open_engines(
    config: Configuration, bundle: Path, engine: EngineSettings, variant: str, stack: ExitStack, names: Sequence[str]
) -> dict[str, Runner]:
    """Open the engines of some components, of which "unet" is that of a variant, or the unmitigated one; `stack` closes them.

    Threads go before those of the build. Raises `InputError` for an engine the bundle lacks, `MissingDependency` for a provider
    that is not here and, before any of them is opened, for TensorRT engines that this machine cannot run.
    """
    pure, flavour = variant == UNMITIGATED, engine.flavour
    if flavour is None:
        unet, weights = UNET_FOLDERS["baked" if pure else variant], original_weights(bundle) if pure else None
    else:
        unet, weights = UNET_FOLDERS["masked" if pure else variant], None
    places = {name: unet if name == "unet" else name for name in names}
    if flavour is not None:
        check_plans(bundle, tuple(places.values()), flavour)

    def opened(place: str) -> Runner:
        if flavour is not None:
            return stack.enter_context(tensorrt.open_engine(bundle, place, flavour, factor=config.factor))
        changed = weights if place == unet else None
        return stack.enter_context(onnxfiles.open_engine(bundle, place, engine, changed))

    return {name: opened(place) for name, place in places.items()}


def eager_pipeline(checkpoint: Checkpoint, *, compiled: bool = False) -> Pipeline:
    """The checkpoint in eager PyTorch, the reference; or `compiled` by torch.compile, at the first call of each shape."""
    from nemo_edge.backends import torch

    checkpoint.vae.requires_grad_(True)  # as in diffusers: PyTorch rounds some products otherwise where no gradient is wanted
    components = checkpoint.components()
    if compiled:
        from torch import compile as compile_module

        components = tuple(replace(c, module=cast("Module", compile_module(c.module))) for c in components)
    *texts, unet, vae = (torch.open_runner(component) for component in components)
    return Pipeline(checkpoint.config, tuple(texts), unet, vae, eager=True)


def has_unmitigated(variants: Sequence[str], engine: EngineSettings) -> bool:
    """Whether a bundle of these variants has an unmitigated engine beside its own, to hold them against.

    That of TensorRT is its masked engine: beside itself it would say nothing.
    """
    return engine.flavour is None and set(variants) >= {"baked", "masked"}


def original_weights(bundle: Path) -> dict[str, np.ndarray]:
    """Return the value weights of the masked graph, which has them all, by their names in the baked one.

    Raises `InputError` for a bundle that has not both.
    """
    layers = [layer.name for layer in NeuronSet.load(bundle / "neurons.json").layers]
    paths = {variant: bundle / folder / "model.onnx" for variant, folder in UNET_FOLDERS.items()}
    if not all(path.is_file() for path in paths.values()):
        raise InputError(f"{bundle} has no unmitigated engine: build it with export.variants = ['baked', 'masked']")
    baked, masked = (open_graph(paths[variant]) for variant in ("baked", "masked"))
    names = zip(baked.weights(layers).values(), masked.weights(layers).values(), strict=True)
    pairs = {theirs: ours for here, there in names for ours, theirs in zip(here, there, strict=True)}
    return {pairs[name]: value for name, value in masked.read(list(pairs)).items()}
