"""The part of Triton's Python interface that a served model needs to begin: it is compiled into the server, and nowhere else."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np


class TritonModelException(Exception):
    """What a model raises that cannot be loaded; the server gives its text to whoever asked for the model."""


class Family:
    """A metric that counts nothing."""

    COUNTER = GAUGE = HISTOGRAM = 0

    def __init__(self, *about: object) -> None: ...


@contextmanager
def served(folder: Path) -> Iterator[Any]:
    """A version of a model as a server opens it: its class, from the file that was shipped, begun on its folder and ended again."""
    from nemo_edge.serving.modelconfig import read_config

    backend = ModuleType("triton_python_backend_utils")
    known = {"TYPE_FP32": np.float32, "TYPE_UINT8": np.uint8}
    backend.__dict__.update(
        TritonModelException=TritonModelException,
        MetricFamily=Family,
        Logger=SimpleNamespace(log_error=lambda message: None),
        triton_string_to_numpy=known.__getitem__,
    )
    former = sys.modules.get(backend.__name__)
    sys.modules[backend.__name__] = backend
    try:
        own: dict[str, Any] = {"__name__": "model"}
        exec(compile((folder / "model.py").read_text(), folder / "model.py", "exec"), own)  # as the server imports it
        config = read_config(folder.parent / "config.pbtxt")
        ports = [{"name": port.name, "data_type": f"TYPE_{'UINT8' if port.name == 'image' else 'FP32'}"} for port in config.output]
        opened = own["TritonPythonModel"]()

        opened.initialize(
            {
                "model_config": json.dumps({"output": ports, "parameters": {}}),
                "model_repository": str(folder.parent),
                "model_version": folder.name,
            }
        )
        yield opened
        if hasattr(opened, "finalize"):
            opened.finalize()
    finally:
        sys.modules.pop(backend.__name__, None)
        if former is not None:
            sys.modules[backend.__name__] = former
