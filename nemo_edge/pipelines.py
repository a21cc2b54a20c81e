"""Opens whole pipelines: eager PyTorch from a checkpoint, engines from a bundle, each component by its name."""

from __future__ import annotations

__all__ = ["UNET_FOLDERS", "UNMITIGATED", "eager_pipeline", "has_unmitigated", "open_pipeline", "original_weights"]

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from torch import compile as compile_module
from torch.nn import Module

from nemo_edge.backends import Runner, onnxruntime, torch
from nemo_edge.bundle import UNET_FOLDERS
from nemo_edge.checkpoint import Checkpoint
from nemo_edge.configuration import Configuration
from nemo_edge.errors import InputError
from nemo_edge.graphs import open_graph
from nemo_edge.neurons import NeuronSet
from nemo_edge.sampling import Pipeline

UNMITIGATED = "unmitigated"
"""Name of the engine that has every memory still: the baked graph with the value weights of the masked one."""


def open_pipeline(
    config: Configuration, bundle: Path, provider: str, variant: str, stack: ExitStack, threads: int | None = None
) -> Pipeline:
    """Open the engines of a variant, or the unmitigated ones; `stack` closes them. `threads` go before those of the build.

    Raises `InputError` for an engine the bundle lacks, `MissingDependency` for a provider that is not here.
    """

    def opened(place: str, weights: dict[str, np.ndarray] | None = None) -> Runner:
        return stack.enter_context(onnxruntime.open_engine(bundle, place, provider, threads=threads, weights=weights))

    texts = tuple(opened(name) for name in config.text_encoder_names)
    pure = variant == UNMITIGATED
    unet = opened(UNET_FOLDERS["baked" if pure else variant], original_weights(bundle) if pure else None)
    return Pipeline(config, texts, unet, opened("vae_decoder"))


def eager_pipeline(checkpoint: Checkpoint, *, compiled: bool = False) -> Pipeline:
    """The checkpoint in eager PyTorch, the reference; or `compiled` by torch.compile, at the first call of each shape."""
    components = checkpoint.components()
    if compiled:
        components = tuple(replace(c, module=cast(Module, compile_module(c.module))) for c in components)
    *texts, unet, vae = (torch.open_runner(component) for component in components)
    return Pipeline(checkpoint.config, tuple(texts), unet, vae)


def has_unmitigated(variants: Sequence[str]) -> bool:
    """Whether a bundle of these variants holds what the unmitigated engine is made of."""
    return set(variants) >= {"baked", "masked"}


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
