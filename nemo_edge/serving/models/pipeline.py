"""Triton's `model.py` of the pipeline: from prompts to pictures, every step a call of the `unet` model.

The server's Python needs nemo-edge. Prompts are logged only where the configuration's parameter `log_prompts` is "true".
"""

from __future__ import annotations

__all__ = ["TritonPythonModel"]

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from nemo_edge.errors import InputError, NemoEdgeError
from nemo_edge.serving.painter import Painter, Painting
from nemo_edge.serving.requests import INPUTS


class TritonPythonModel:
    """One pipeline in one process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the pipeline, once its files are those that were shipped."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self._log_prompts = parameters.get("log_prompts", {}).get("string_value") == "true"
        try:
            self._painter = Painter.open(Path(args["model_repository"]) / args["model_version"], _call)
        except NemoEdgeError as error:
            raise pb.TritonModelException(str(error)) from error
        self._families = (
            pb.MetricFamily("nemo_edge_policy_applied", "Pictures drawn under a policy", pb.MetricFamily.COUNTER),
            pb.MetricFamily("nemo_edge_neurons_silenced", "Neurons that the last picture was drawn without", pb.MetricFamily.GAUGE),
        )
        names = self._painter.policies.neurons
        self._applied, self._silenced = (
            {policy: family.Metric(labels={"policy": policy, "version": args["model_version"]}) for policy in names}
            for family in self._families
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, one after the other."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        given = {name: pb.get_input_tensor_by_name(request, name) for name in INPUTS}
        try:
            painting = self._painter.paint({name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None})
        except NemoEdgeError as error:
            code = pb.TritonError.INVALID_ARG if isinstance(error, InputError) else pb.TritonError.INTERNAL
            return pb.InferenceResponse([], pb.TritonError(str(error), code))
        self._tell(painting)
        return pb.InferenceResponse([pb.Tensor("image", painting.pictures), pb.Tensor("score", painting.score_B)])

    def _tell(self, painting: Painting) -> None:
        policy = painting.request.policy
        self._applied[policy].increment(len(painting.pictures))
        if painting.silenced_B is not None:
            self._silenced[policy].set(float(painting.silenced_B[-1]))
        if self._log_prompts:
            pb.Logger.log_info(f"drawn under {policy}: {json.dumps(painting.request.prompts)}")


def _call(model: str, version: int, outputs: tuple[str, ...], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Call another model of this server; its answers come in host memory. Raises `NemoEdgeError` for one that does not answer."""
    request = pb.InferenceRequest(
        model_name=model,
        model_version=version,
        requested_output_names=list(outputs),
        inputs=[pb.Tensor(name, array) for name, array in arrays.items()],
        preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise NemoEdgeError(f"{model} of version {version} did not answer: {response.error().message()}")
    return {name: np.array(pb.get_output_tensor_by_name(response, name).as_numpy()) for name in outputs}
