"""Triton's `model.py` of the pipeline: from prompts to pictures, every step a call of the `unet` model.

The server's Python needs nemo-edge. Every request is a line of JSON in the server's log, with the prompts only where the
configuration's parameter `log_prompts` is "true".
"""

from __future__ import annotations

__all__ = ["Metrics", "TritonPythonModel"]

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from nemo_edge.serving.errors import InputError, NemoEdgeError
from nemo_edge.serving.painter import Painter, Painting
from nemo_edge.serving.requests import INPUTS

SCORES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
"""Bounds of the histogram of scores."""


class TritonPythonModel:
    """One pipeline in one process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the pipeline, once its files are those that were shipped."""
        parameters = json.loads(args["model_config"]).get("parameters", {})
        self._log_prompts = parameters.get("log_prompts", {}).get("string_value") == "true"
        folder, self._engines = Path(args["model_repository"]) / args["model_version"], ExitStack()
        try:
            self._painter = Painter.open(folder, _call, pb.Logger.log_error, self._engines)
        except NemoEdgeError as error:
            raise pb.TritonModelException(str(error)) from error
        self._metrics = Metrics(args["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, one after the other."""
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        """Close what it opened itself."""
        self._engines.close()

    def _respond(self, request: Any) -> Any:
        given = {name: pb.get_input_tensor_by_name(request, name) for name in INPUTS}
        started = time.perf_counter()
        try:
            painting = self._painter.paint({name: tensor.as_numpy() for name, tensor in given.items() if tensor is not None})
        except NemoEdgeError as error:
            pb.Logger.log_warn(json.dumps({"event": "refused", "why": str(error)}))
            code = pb.TritonError.INVALID_ARG if isinstance(error, InputError) else pb.TritonError.INTERNAL
            return pb.InferenceResponse([], pb.TritonError(str(error), code))
        self._metrics.count(painting)
        pb.Logger.log_info(json.dumps({"event": "drawn", **self._told(painting), "seconds": round(time.perf_counter() - started, 4)}))
        return pb.InferenceResponse([pb.Tensor("image", painting.pictures), pb.Tensor("score", painting.score_B)])

    def _told(self, painting: Painting) -> dict[str, Any]:
        """What the log has of a request that was answered."""
        request = painting.request
        silenced = None if painting.silenced_B is None else painting.silenced_B.tolist()
        told = {"policy": painting.policy, "policies": painting.policies, "score": painting.score_B.tolist(), "silenced": silenced}
        told |= {"seeds": request.seeds, "steps": request.settings.steps, "size": painting.pictures.shape[1:3]}
        return {**told, "prompts": request.prompts} if self._log_prompts else told


class Metrics:
    """What the server's metrics say of the pictures, beside Triton's own.

    A label is the name of a policy; all merged clusters have one, since clients could ask for any number of mixtures.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._applied = pb.MetricFamily("nemo_edge_policy_applied", "Pictures drawn under a policy", pb.MetricFamily.COUNTER)
        self._touched = pb.MetricFamily(
            "nemo_edge_pictures_silenced",
            "Pictures drawn with neurons silenced; the others are the untouched model's",
            pb.MetricFamily.COUNTER,
        )
        self._silenced = pb.MetricFamily(
            "nemo_edge_neurons_silenced", "Neurons that the last picture was drawn without", pb.MetricFamily.GAUGE
        )
        self._score = pb.MetricFamily("nemo_edge_policy_score", "How sure the policy was of each picture", pb.MetricFamily.HISTOGRAM)
        self._metrics: dict[tuple[str, str], tuple[Any, Any, Any, Any]] = {}

    def count(self, painting: Painting) -> None:
        """Count the pictures of a request."""
        key = "clusters" if "," in painting.policy else painting.policy, painting.policies
        if key not in self._metrics:  # policies may come while the server runs
            labels = {"policy": key[0], "policies": key[1], "version": self._version}
            score = self._score.Metric(labels=labels, buckets=SCORES)
            own = (family.Metric(labels=labels) for family in (self._applied, self._touched, self._silenced))
            self._metrics[key] = (*own, score)
        applied, touched, silenced, score = self._metrics[key]
        applied.increment(len(painting.pictures))
        if painting.silenced_B is not None:
            touched.increment(int((painting.silenced_B > 0).sum()))
            silenced.set(float(painting.silenced_B[-1]))
        for each in painting.score_B.tolist():
            score.observe(each)


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
