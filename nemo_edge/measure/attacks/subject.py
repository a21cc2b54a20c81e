"""The model that is attacked, opened: its checkpoint in eager PyTorch, where gradients are, and what draws the pictures.

A bundle's embeddings are found with its neurons silenced in its checkpoint and drawn by its engines, since they are an input of them.
"""

from __future__ import annotations

__all__ = ["Place", "Subject", "check_place", "open_bundle_subject", "open_subject"]

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_edge.bundle.manifest import MANIFEST, Manifest, check_measurable, open_bundle, open_verified
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.checkpoint import Checkpoint, open_source, value_layers
from nemo_edge.model.marker import is_random
from nemo_edge.model.neurons import NeuronSet, read_neurons
from nemo_edge.recipe.recipe import Recipe, anchored, kept_recipe
from nemo_edge.recipe.settings import CheckpointSettings, SamplingSettings
from nemo_edge.sampling.loop import Pipeline, latent_shape
from nemo_edge.sampling.pipelines import eager_pipeline, open_pipeline
from nemo_edge.system.errors import BundleError, InputError
from nemo_edge.system.files import sha256_json


@dataclass(frozen=True)
class Place:
    """Where what is attacked lies: a bundle, or a checkpoint; and what is not said by a bundle, or said otherwise."""

    source: CheckpointSettings
    """Its path is the bundle's or the checkpoint's; what it says of the device goes before the bundle's recipe."""
    neurons: Path | None = None
    """What is silenced in a checkpoint."""
    sampling: SamplingSettings | None = None
    """How pictures are drawn with a checkpoint, where not by the defaults."""
    weights: str | None = None
    """Where a bundle's checkpoint is, if not where its recipe says."""
    hardened: str | None = None
    """Where the hardened checkpoint is that a bundle's engines have the weights of."""

    def recipe(self) -> Recipe | None:
        """The recipe that a bundle was made by, its files found from the bundle; None of a checkpoint."""
        if not self.is_bundle:
            return None
        folder = Path(self.source.path)
        return anchored(kept_recipe(open_bundle(folder).recipe, folder), folder)

    @property
    def is_bundle(self) -> bool:
        """Whether it is a bundle by its manifest."""
        return (Path(self.source.path) / MANIFEST).is_file()


@dataclass(frozen=True)
class Subject:
    """A model under attack."""

    checkpoint: Checkpoint
    eager: Pipeline
    replay: Pipeline
    """What draws: a bundle's engines; `eager` for a checkpoint, whose neurons are then to be silenced."""
    neurons: NeuronSet
    sampling: SamplingSettings
    engine: str
    """What draws, in words."""
    threshold: float | None
    """The copy threshold that a bundle was measured by."""
    hardened: Checkpoint | None = None
    """The weights that a bundle's engines have, where they were hardened; else the checkpoint's with the neurons silenced."""

    @property
    def mask(self) -> np.ndarray | None:
        """What a masked engine is given."""
        return self.neurons.mask() if self.replay.masked else None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of its pictures, in pixels."""
        _, height, width = latent_shape(self.checkpoint.config, self.sampling)
        return height * self.checkpoint.config.factor, width * self.checkpoint.config.factor

    def content_hash(self) -> str:
        """Hash of all that its pictures depend on: weights, neurons, sampling, and what draws."""
        weights = [self.checkpoint.files, *([self.hardened.files] if self.hardened else [])]
        return sha256_json([*weights, self.neurons.content_hash(), self.sampling.model_dump(mode="json"), self.engine])


def check_place(place: Place) -> Manifest | None:
    """Return the manifest of a bundle once all its files are as it says; None for a checkpoint.

    Raises `BundleError` for a bundle that was changed or carries random weights, `InputError` for a checkpoint that does and for options
    that are of the other kind.
    """
    if not place.is_bundle:
        random = is_random(place.source.path)
        if random is not None:
            raise InputError(
                f"checkpoint {place.source.path} carries random weights ({random}), which hold no memory to bring back: --smoke walks "
                "through an attack with them and says what it takes"
            )
        if place.weights is not None or place.hardened is not None:
            option = "--checkpoint" if place.weights is not None else "--hardened"
            raise InputError(f"{option} says where a bundle's weights are, and a checkpoint is attacked: leave it out")
        return None
    given: dict[str, object] = {"--neurons": place.neurons, "--recipe": place.sampling}
    given |= {"--lora": place.source.loras or None, "--clip-skip": place.source.clip_skip or None}
    own = next((option for option, value in given.items() if value is not None), None)
    if own is not None:
        raise InputError(f"{own} is for a checkpoint; {place.source.path} is a bundle, which has its own: leave it out")
    folder = Path(place.source.path)
    manifest = open_verified(folder)
    check_measurable(folder, manifest)
    return manifest


@contextmanager
def open_subject(place: Place, manifest: Manifest | None) -> Iterator[Subject]:
    """Open what is attacked; leaving the context closes its engines. `manifest` is what `check_place` gave.

    Raises `InputError` for a checkpoint that a bundle is not made from, and for neurons of another model.
    """
    if manifest is None:
        checkpoint = open_source(place.source)
        layers = value_layers(checkpoint.unet)
        neurons = read_neurons(place.neurons, layers) if place.neurons else NeuronSet.empty(layers)
        eager = eager_pipeline(checkpoint)
        yield Subject(checkpoint, eager, eager, neurons, place.sampling or SamplingSettings(), "eager PyTorch", None)
        return
    bundle = Path(place.source.path)
    recipe = anchored(kept_recipe(manifest.recipe, bundle), bundle)
    path = place.weights or recipe.checkpoint.path
    asked = place.source.model_dump(include=place.source.model_fields_set & {"device", "allow_pickle"})
    checkpoint = open_source(recipe.checkpoint.model_copy(update={"path": path, **asked}))
    if checkpoint.files != manifest.checkpoint:
        raise InputError(f"{path} is not the checkpoint that {bundle} was made from: its files have other hashes; pass --checkpoint")
    hardened = _hardened(place, manifest, checkpoint)
    with open_bundle_subject(checkpoint, bundle, recipe, hardened) as subject:
        yield subject


def _hardened(place: Place, manifest: Manifest, checkpoint: Checkpoint) -> Checkpoint | None:
    """The weights of a hardened bundle's engines."""
    if manifest.hardened is None:
        if place.hardened is not None:
            raise InputError(f"--hardened names weights, and those of {place.source.path} were not hardened: leave it out")
        return None
    if place.hardened is None:
        raise InputError(
            f"the weights of {place.source.path} were hardened: pass --hardened, the checkpoint that its build left "
            "(`.<bundle>.build/harden-…/checkpoint` beside it)"
        )
    opened = open_source(place.source.model_copy(update={"path": place.hardened, "device": checkpoint.device.type}))
    if opened.files != manifest.hardened:
        raise InputError(f"{place.hardened} is not the checkpoint whose weights {place.source.path} has: its files have other hashes")
    return opened


@contextmanager
def open_bundle_subject(checkpoint: Checkpoint, bundle: Path, recipe: Recipe, hardened: Checkpoint | None = None) -> Iterator[Subject]:
    """Open the engines of a bundle, finished or not; its first variant draws. Leaving the context closes them."""
    variant, neurons = recipe.export.variants[0], NeuronSet.load(bundle / "neurons.json")
    with ExitStack() as stack:
        engines = open_pipeline(checkpoint.config, bundle, recipe.engine, variant, stack)
        engine = f"{recipe.engine.backend}, {variant}"
        yield Subject(checkpoint, eager_pipeline(checkpoint), engines, neurons, recipe.sampling, engine, _threshold(bundle), hardened)


def _threshold(bundle: Path) -> float | None:
    try:
        return Measurement.read(bundle).copy_threshold
    except BundleError:
        return None
