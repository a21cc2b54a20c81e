"""What this machine can do for a build: which backends compile and run here, what does not fit together, what to do about it.

It tells, and mends nothing. What it says of a backend was tried (`probes`), not read off a list.
"""

from __future__ import annotations

__all__ = ["Diagnosis", "diagnose"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from nemo_edge import __version__
from nemo_edge.backends.probes import BROKEN, Probe, RuntimeLinks, import_problems, probe_all, runtime_links
from nemo_edge.model.inspection import check_kind
from nemo_edge.release._footprint import Footprint, estimate
from nemo_edge.system.compatibility import (
    Problem,
    installed,
    old_driver,
    overwritten,
    requirements_of,
    two_cudas,
    unfit_tensorrt,
    unmet,
)
from nemo_edge.system.environment import DOT_PRODUCTS, Machine, importable, int8_products, machine
from nemo_edge.system.files import checkpoint_folder
from nemo_edge.system.reading import expanded

OURS = "nemo-edge"
CHECKED = ("torch", "diffusers", "transformers", "huggingface-hub", "onnxscript", "onnxruntime-gpu", "onnxruntime", "accelerate")
"""Packages whose own requirements are compared with what is installed: pip replaces one of them without asking the others."""

_NOT_FOR_BUILDING = Problem(
    what="PyTorch is not installed",
    why="a bundle is built with it; a finished one draws without",
    remedy="pip install 'nemo-edge[build]'",
    breaks_build=True,
)


class Diagnosis(BaseModel):
    """What this machine is, what works on it, what does not, and the remedies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    nemo_edge: str
    machine: Machine
    torch_cuda: str | None
    """CUDA that torch is built for."""
    torch_sees_gpu: bool
    onnxruntime_cuda: str | None
    """CUDA that ONNX Runtime is built for."""
    onnxruntime_tensorrt: int | None
    """Major version of TensorRT that ONNX Runtime's provider is linked with."""
    backends: tuple[Probe, ...]
    problems: tuple[Problem, ...]
    model: Footprint | None = None

    @property
    def passed(self) -> bool:
        """Whether `nemo-edge build` works here on the CPU. A backend that is not installed is not needed for that."""
        needed = [p.runs for p in self.backends if (p.backend, p.provider) in (("torch", "cpu"), ("onnxruntime", "cpu"))]
        return all(needed) and not any(problem.breaks_build for problem in self.problems)


def diagnose(model: str | None = None, output: Path = Path()) -> Diagnosis:
    """Examine this machine; with `model`, a local diffusers folder or `.safetensors` file, also whether a build of it fits.

    `output` is where the bundle would go. Raises `InputError` for a model that is not there, or of a kind that is not built.
    """
    footprint = _footprint(model, output) if model is not None else None  # first: a wrong path is told at once
    here, versions, links = machine(), installed(), runtime_links()
    broken = import_problems(versions) if importable("torch") else (_NOT_FOR_BUILDING,)
    torch_cuda, runtime_cuda = _torch_cuda(), _runtime_cuda()
    backends = probe_all(here.gpus, versions)
    drivers = [gpu.driver for gpu in here.gpus]
    return Diagnosis(
        nemo_edge=__version__,
        machine=here,
        torch_cuda=torch_cuda,
        torch_sees_gpu=any(p.name == "torch cuda" and p.runs for p in backends),
        onnxruntime_cuda=runtime_cuda,
        onnxruntime_tensorrt=links.tensorrt,
        backends=backends,
        problems=(*broken, *_integers(), *_version_problems(versions, torch_cuda, runtime_cuda, links, drivers)),
        model=footprint,
    )


def _footprint(model: str, output: Path) -> Footprint:
    if expanded(model).exists() and (local := checkpoint_folder(model) / "model_index.json").is_file():
        check_kind(local.parent)  # without an index it is a part of a copy, whose size is asked
    return estimate(model, output)


def _version_problems(
    versions: Mapping[str, str], torch_cuda: str | None, runtime_cuda: str | None, links: RuntimeLinks, drivers: Sequence[str]
) -> tuple[Problem, ...]:
    cuda = int(_major(runtime_cuda) or 13)
    return (
        *unmet(OURS, requirements_of(OURS), versions, breaks_build=True, extra="build" if importable("torch") else ""),
        *(p for name in CHECKED if name in versions for p in unmet(name, _own(name), versions)),
        *overwritten(versions),
        *unfit_tensorrt(versions, links.tensorrt, cuda),
        *two_cudas(torch_cuda, runtime_cuda),
        *old_driver(drivers, torch_cuda),
        *(old_driver(drivers, runtime_cuda, "onnxruntime-gpu") if runtime_cuda and _major(runtime_cuda) != _major(torch_cuda) else ()),
    )


def _integers() -> tuple[Problem, ...]:
    """What int8 engines would be on this CPU: it tells of what is right and slow, too."""
    how = int8_products()
    if how not in ("slow", "overflows"):
        return ()
    openvino = ", and OpenVINO, whose sums overflow, is refused" if how == "overflows" else ""
    return (
        Problem(
            what=f"this CPU has no instructions for 8-bit integers ({DOT_PRODUCTS})",
            why=f"int8 engines are right but hardly faster in ONNX Runtime{openvino}",
            remedy="[quantization] scheme = 'int8_weights', which is smaller and multiplies floats",
        ),
    )


def _major(version: str | None) -> str:
    return (version or "").partition(".")[0]


def _own(package: str) -> tuple[str, ...]:
    """Requirements of a package without those of its extras, which are tests and integrations."""
    return tuple(text for text in requirements_of(package) if "extra ==" not in text)


def _torch_cuda() -> str | None:
    try:
        import torch
    except BROKEN:
        return None
    return torch.version.cuda


def _runtime_cuda() -> str | None:
    try:
        from onnxruntime.capi import build_and_package_info
    except BROKEN:
        return None
    return getattr(build_and_package_info, "cuda_version", None) or None
