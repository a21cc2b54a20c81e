"""What runs a bundle's ONNX files as they are, ONNX Runtime or OpenVINO: the same verbs, for the one that the recipe's `[engine]` names.

Imports neither before it is asked for.
"""

from __future__ import annotations

__all__ = ["compile_engine", "describe", "open_engine", "open_runner", "probe", "profile"]

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nemo_edge.backends.base import Operator, Runner
from nemo_edge.recipe.targets import EngineSettings


def compile_engine(bundle: Path, component: str, model: str, engine: EngineSettings) -> None:
    """Write into `engines/` how the bundle's ONNX file is run."""
    if engine.backend == "openvino":
        from nemo_edge.backends import openvino

        openvino.compile_engine(bundle, component, model, engine)
        return
    from nemo_edge.backends import onnxruntime

    onnxruntime.compile_engine(bundle, component, model, engine.provider, engine.threads)


def open_engine(bundle: Path, component: str, engine: EngineSettings, weights: Mapping[str, np.ndarray] | None = None) -> Runner:
    """Open a component of a bundle, with other `weights` of some names. Raises `InputError` for one that it lacks, `MissingDependency` for
    what does not run here."""
    if engine.backend == "openvino":
        from nemo_edge.backends import openvino

        return openvino.open_engine(bundle, component, engine, weights)
    from nemo_edge.backends import onnxruntime

    return onnxruntime.open_engine(bundle, component, engine.provider, threads=engine.threads, weights=weights)


def open_runner(model: Path, engine: EngineSettings) -> Runner:
    """Open an ONNX file outside of a bundle. Raises as `open_engine`."""
    if engine.backend == "openvino":
        from nemo_edge.backends import openvino

        return openvino.open_runner(model, engine)
    from nemo_edge.backends import onnxruntime

    return onnxruntime.open_runner(model, engine.provider, engine.threads)


def profile(model: Path, engine: EngineSettings, feed: Mapping[str, np.ndarray], runs: int) -> tuple[Operator, ...]:
    """Run an ONNX file so often and return what the runtime's profiler says of each operator. Raises as `open_engine`."""
    if engine.backend == "openvino":
        from nemo_edge.backends import openvino

        return openvino.profile(model, engine, feed, runs)
    from nemo_edge.backends import onnxruntime

    return onnxruntime.profile(model, engine.provider, engine.threads, feed, runs)


def probe(engine: EngineSettings) -> None:
    """Raise `MissingDependency` unless it runs here."""
    if engine.backend == "openvino":
        from nemo_edge.backends import openvino

        openvino.check_device(engine)
        return
    from nemo_edge.backends import onnxruntime

    onnxruntime.probe_provider(engine.provider)


def describe(engine: EngineSettings) -> dict[str, Any]:
    """Backend and version, for provenance."""
    if engine.backend == "openvino":
        from nemo_edge.backends import openvino

        return openvino.describe(engine)
    from nemo_edge.backends import onnxruntime

    return onnxruntime.describe()
