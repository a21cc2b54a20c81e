"""The engines that a pipeline calls, opened in its own process: what there is to call where no server serves them as models.

Knows version folders; nothing of requests.
"""

from __future__ import annotations

__all__ = ["Call", "open_components"]

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from nemo_edge.backends.base import Runner
from nemo_edge.serving.versions import PipelineVersion, describe_engine, model_name, open_engine
from nemo_edge.system.errors import BundleError

Call = Callable[[str, int, tuple[str, ...], Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]
"""Calls a model of the server: its name, version, the outputs wanted, and its inputs."""


def open_components(folder: Path, version: PipelineVersion, stack: ExitStack) -> Call:
    """Open the engines that a pipeline's version in a folder calls, which `stack` closes; return what calls them.

    Raises `BundleError` for files that are not as they were shipped, `MissingDependency` for an engine that does not run here.
    """
    places = {name: version.place(folder, name) for name in version.models}
    return _calling({model_name(version.label, name): stack.enter_context(_open(place, version)) for name, place in places.items()})


def _open(folder: Path, pipeline: PipelineVersion) -> Runner:
    """Open an engine; one that goes with a pipeline whose signature is asked for is of the same bundle, and asks for the same."""
    own = describe_engine(folder)
    if pipeline.trust is not None and (own.trust, own.manifest) != (pipeline.trust, pipeline.manifest):
        raise BundleError(f"{folder} is not of the bundle that the pipeline is of: ship the bundle again; nothing was opened")
    return open_engine(folder)


def _calling(runners: Mapping[str, Runner]) -> Call:
    """Calls an engine as a server calls its model, where one number a row comes as [B, 1]."""

    def call(model: str, version: int, outputs: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        dims = runners[model].inputs
        found = runners[model]({name: array[:, 0] if array.ndim > len(dims[name]) else array for name, array in arrays.items()})
        return {name: found[name] for name in outputs}

    return call
