"""A repository's pipeline and the models it calls, all in this process: what a server is for where something else takes the requests.

Knows the repository; nothing of what runs it.
"""

from __future__ import annotations

__all__ = ["open_painter"]

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from nemo_edge.backends.base import Runner
from nemo_edge.serving.painter import Call, Painter
from nemo_edge.serving.versions import PipelineVersion, describe_engine, model_name, newest_pipeline, open_engine, read_pipeline
from nemo_edge.system.errors import BundleError


def open_painter(repository: Path, stack: ExitStack, label: str = "") -> Painter:
    """Open the newest pipeline that was shipped under a label to a repository, with the engines it calls, which `stack` closes.

    New policies beside the pipeline (`ship --masks-only`) are in force with the next picture, as in a server. Raises `BundleError`
    for files that are not as they were shipped, `MissingDependency` for an engine that does not run here.
    """
    folder = newest_pipeline(repository, label)
    version = read_pipeline(folder)
    runners = {model_name(label, name): stack.enter_context(_open(version.place(folder, name), version)) for name in version.models}
    return Painter.open(folder, _calling(runners))


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
