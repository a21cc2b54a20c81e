"""Triton's `model.py` of a component: answers with the engine that lies beside it. The server's Python needs nemo-edge.

Every component is shipped with this same file; what it opens is in its `version.json`.
"""

from __future__ import annotations

__all__ = ["TritonPythonModel"]

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from nemo_edge.serving.batches import answer
from nemo_edge.serving.errors import InputError, NemoEdgeError
from nemo_edge.serving.versions import open_engine


class TritonPythonModel:
    """One engine in one process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine, once its files are those that were shipped."""
        self._types = {port["name"]: pb.triton_string_to_numpy(port["data_type"]) for port in json.loads(args["model_config"])["output"]}
        try:
            self._runner = open_engine(Path(args["model_repository"]) / args["model_version"])
        except NemoEdgeError as error:
            raise pb.TritonModelException(str(error)) from error

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests of a batch."""
        feeds = [{name: pb.get_input_tensor_by_name(r, name).as_numpy() for name in self._runner.inputs} for r in requests]
        return [self._response(found) for found in answer(self._runner, feeds)]

    def finalize(self) -> None:
        """Close the engine."""
        self._runner.__exit__(None, None, None)

    def _response(self, found: dict[str, np.ndarray] | NemoEdgeError) -> Any:
        if isinstance(found, NemoEdgeError):
            code = pb.TritonError.INVALID_ARG if isinstance(found, InputError) else pb.TritonError.INTERNAL
            return pb.InferenceResponse([], pb.TritonError(str(found), code))
        return pb.InferenceResponse([pb.Tensor(name, np.ascontiguousarray(found[name], kind)) for name, kind in self._types.items()])
