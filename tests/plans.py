"""Plans for tests: one compiled by TensorRT-RTX, others written as their headers are, and the sidecars of both."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from nemo_edge.backends.tensorrt.plans import PlanFile


@cache
def compiled(*targets: str) -> bytes:
    """A matrix multiplication compiled by TensorRT-RTX for these targets (`SM86`), or for its own choice of them."""
    trt = pytest.importorskip("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    network, config = builder.create_network(), builder.create_builder_config()
    x = network.add_input("x", trt.float16, (16, 16))
    network.mark_output(network.add_matrix_multiply(x, trt.MatrixOperation.NONE, x, trt.MatrixOperation.NONE).get_output(0))
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
    return bytes(builder.build_serialized_network(network, config))


def standard(version: tuple[int, int, int, int] = (11, 4, 0, 106), size: int = 4096) -> bytes:
    """The beginning that trtexec reads of a plan of TensorRT, and nothing behind it."""
    return (b"ftrt" + bytes(20) + bytes(version)).ljust(size, b"\0")


def sidecar(**changes: Any) -> PlanFile:
    """A sidecar of `unet.plan` by TensorRT-RTX 1.7.1.116 for its own choice of GPUs."""
    latents = ((2, 4, 64, 64), (2, 4, 64, 64), (8, 4, 96, 96))
    values: dict[str, Any] = {
        "component": "unet",
        "backend": "tensorrt-rtx",
        "version": "1.7.1.116",
        "plan": "engines/unet.plan",
        "size_bytes": 4096,
        "model": "unet/model.onnx",
        "graph_hash": "0" * 64,
        "targets": (),
        "system": "Linux and Windows",
        "dtype": "fp16",
        "inputs": {
            "sample": {"dtype": "float16", "dims": ("batch", 4, "height", "width")},
            "timestep": {"dtype": "float16", "dims": (1,)},
            "encoder_hidden_states": {"dtype": "float16", "dims": ("batch", "tokens", 768)},
        },
        "outputs": {"out_sample": {"dtype": "float16", "dims": ("batch", 4, "height", "width")}},
        "profiles": ({"sample": latents, "encoder_hidden_states": ((2, 77, 768), (2, 77, 768), (8, 77, 768))},),
        "flags": ("TF32",),
        "settings": {"cuda_graphs": True, "kernel_specialization": "LAZY"},
        "reproducible": True,
        "build_s": 41.5,
    }
    return PlanFile.model_validate(values | changes)


def standard_sidecar(**changes: Any) -> PlanFile:
    """A sidecar of a plan of TensorRT 11.4.0.106 that was built on an H100."""
    built = {"backend": "tensorrt", "version": "11.4.0.106", "targets": ("sm90",), "built_on": "NVIDIA H100", "system": "Linux"}
    return sidecar(**{**built, **changes})


def write(folder: Path, data: bytes, described: PlanFile | None, name: str = "unet.plan") -> Path:
    """Put a plan and its sidecar into a folder; the sidecar's size is made the plan's."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(data)
    if described is not None:
        whole = described.model_copy(update={"size_bytes": len(data)})
        path.with_suffix(".json").write_text(whole.model_dump_json())
    return path
