"""A repository as an `InferenceService` of KServe, for Kubernetes: its Triton runtime, told where the repository is.

Writes what `kubectl apply` takes; talks to no cluster. Field names are those of `serving.kserve.io/v1beta1`.
"""

from __future__ import annotations

__all__ = ["RUNTIME", "SCHEMES", "Placement", "describe_service"]

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from nemo_edge.serving.versions import describe_engine, describe_pipeline, labels, newest_pipeline

RUNTIME = "kserve-tritonserver"
"""The serving runtime of Triton that KServe brings; it loads every model of the repository when it starts."""

SCHEMES = ("s3", "gs", "pvc", "https", "hf", "hdfs", "webhdfs", "oci")
"""What KServe gets a repository from; a folder of one machine is not among them."""

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?([KMGTPE]i|[mkMGTPE])?")
_TOLD = {"bundle": "bundle", "manifest": "manifest", "version": "number"}
"""Annotation → what a pipeline's version says of itself; of several models one after the other."""
_SHARED_MEMORY = {"name": "shared-memory", "emptyDir": {"medium": "Memory"}}
_SHARED_MEMORY_AT = {"name": "shared-memory", "mountPath": "/dev/shm"}


class Placement(BaseModel):
    """Where a repository is for the cluster, what runs it, and what a replica may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of the service: a DNS label."""
    storage: str
    """URI of the repository's copy: "s3://bucket/models", "pvc://claim/models"."""
    image: str = Field(min_length=1)
    """Of a Triton server whose Python has nemo-edge."""
    namespace: str | None = None
    cpu: str = "4"
    memory: str = "16Gi"
    gpus: int | None = Field(None, ge=0, le=1024)
    """None: one where an engine of the repository runs on a GPU."""
    replicas: int = Field(1, ge=0, le=10_000)
    """The fewest; 0 lets the service go to sleep."""
    most: int = Field(1, ge=1, le=10_000)

    @field_validator("name", "namespace")
    @classmethod
    def _label(cls, name: str | None) -> str | None:
        if name is not None and not _NAME.fullmatch(name):
            raise ValueError("take lower-case letters, digits and -, at most 63, a letter first")
        return name

    @field_validator("cpu", "memory")
    @classmethod
    def _quantity(cls, amount: str) -> str:
        if not _QUANTITY.fullmatch(amount):
            raise ValueError("take a quantity of Kubernetes: 4, 500m, 16Gi")
        return amount

    @field_validator("storage")
    @classmethod
    def _reachable(cls, storage: str) -> str:
        scheme, found, rest = storage.partition("://")
        if not found or not rest or scheme not in SCHEMES:
            raise ValueError(f"a cluster sees no folder of this machine: take a copy's URI, {', '.join(f'{s}://' for s in SCHEMES)}")
        return storage

    @field_validator("most")
    @classmethod
    def _enough(cls, most: int, info: ValidationInfo) -> int:
        if most < info.data.get("replicas", 0):
            raise ValueError(f"must not be fewer than the {info.data['replicas']} that there are always")
        return most


def describe_service(repository: Path, placement: Placement) -> dict[str, Any]:
    """Return the InferenceService of a repository that `nemo-edge ship` made, of which only the descriptions are read.

    Triton's Python backend passes tensors through shared memory, of which a container has 64 MB: the service has a volume for it.
    Raises `InputError` for a repository without a pipeline.
    """
    folders = [newest_pipeline(repository, label) for label in labels(repository) or ("",)]
    pipelines = {folder: describe_pipeline(folder) for folder in folders}
    engines = [describe_engine(pipeline.place(folder, name)) for folder, pipeline in pipelines.items() for name in pipeline.models]
    on_gpu = any(engine.backend == "tensorrt" or engine.engine.torch_device == "cuda" for engine in engines)
    gpus = int(on_gpu) if placement.gpus is None else placement.gpus
    resources = {"cpu": placement.cpu, "memory": placement.memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    model = {
        "modelFormat": {"name": "triton"},
        "runtime": RUNTIME,
        "protocolVersion": "v2",
        "storageUri": placement.storage,
        "image": placement.image,
        "resources": {"requests": resources, "limits": {**resources}},
        "volumeMounts": [_SHARED_MEMORY_AT],
    }
    told = {name: [str(getattr(each, field)) for each in pipelines.values()] for name, field in _TOLD.items()}
    annotations = {f"nemo-edge/{name}": ", ".join(values) for name, values in told.items()}
    metadata = {"name": placement.name, "annotations": annotations}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {**metadata, "namespace": placement.namespace} if placement.namespace else metadata,
        "spec": {
            "predictor": {"minReplicas": placement.replicas, "maxReplicas": placement.most, "model": model, "volumes": [_SHARED_MEMORY]}
        },
    }
