"""The golden picture: what a server must answer before it counts as ready, drawn by the library with the same bundle.

A server can load, warm up and say that it is ready, and answer with empty tensors all the same.
"""

from __future__ import annotations

__all__ = ["Golden", "ask", "check_golden", "make_golden", "request"]

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nemo_edge.bundle.manifest import open_verified
from nemo_edge.model.configuration import Configuration
from nemo_edge.model.masks import read_mask
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.recipe import kept_recipe
from nemo_edge.sampling.loop import generate
from nemo_edge.sampling.pipelines import open_pipeline
from nemo_edge.serving.requests import INPUTS
from nemo_edge.serving.versions import PIPELINE
from nemo_edge.system.errors import NemoEdgeError

LEVELS = 1
"""Grey levels that a picture may be off: the server may put rows of several requests into one batch."""


@dataclass(frozen=True)
class Golden:
    """A request, and the picture that it must give: uint8 [1, height, width, 3]."""

    tensors: Mapping[str, np.ndarray]
    picture: np.ndarray


def make_golden(bundle: Path, prompt: str = "a red pig", seed: int = 0, steps: int | None = None) -> Golden:
    """Draw the golden picture with the bundle's engines, in this process."""
    manifest = open_verified(bundle)
    recipe = kept_recipe(manifest.recipe, bundle)
    settings = recipe.sampling.model_copy(update={"steps": steps or recipe.sampling.steps})
    variant = "masked" if "masked" in manifest.variants else "baked"
    mask = read_mask(NeuronSet.load(bundle / "neurons.json")) if variant == "masked" else None
    with ExitStack() as stack:
        pipeline = open_pipeline(Configuration.load(bundle), bundle, recipe.engine, variant, stack)
        picture = generate(pipeline, [prompt], [seed], settings, mask)
    return Golden(request(prompt=prompt, seed=seed, steps=settings.steps), picture)


def request(**values: object) -> dict[str, np.ndarray]:
    """A request's tensors, each of one value of the type that the pipeline takes."""
    return {name: np.array([value.encode() if isinstance(value, str) else value], INPUTS[name]) for name, value in values.items()}


def ask(url: str, tensors: Mapping[str, np.ndarray], model: str = PIPELINE) -> dict[str, np.ndarray]:
    """Ask the pipeline of a server at `url` (gRPC) for pictures. Raises `NemoEdgeError` with the server's words where it refuses."""
    import tritonclient.grpc as client
    from tritonclient.utils import np_to_triton_dtype

    inputs = [client.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)) for name, array in tensors.items()]
    for tensor, array in zip(inputs, tensors.values(), strict=True):
        tensor.set_data_from_numpy(array)
    with client.InferenceServerClient(url) as connection:
        try:
            answer = connection.infer(model, inputs)
        except client.InferenceServerException as error:
            raise NemoEdgeError(f"the {model} at {url} refused: {error.message()}") from error
    return {name: answer.as_numpy(name) for name in ("image", "score")}


def check_golden(golden: Golden, url: str) -> None:
    """Raise `NemoEdgeError` unless the server at `url` (gRPC) gives the golden picture, to one grey level."""
    found = ask(url, golden.tensors)["image"]
    if found.shape != golden.picture.shape:
        raise NemoEdgeError(f"the server gave a picture of shape {list(found.shape)}, expected {list(golden.picture.shape)}: do not use it")
    off = int(np.abs(found.astype(int) - golden.picture).max())
    if off > LEVELS:
        raise NemoEdgeError(f"the server's picture is {off} grey levels off the library's, {LEVELS} is allowed: do not use it")
