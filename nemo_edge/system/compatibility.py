"""Which installed versions do not fit together: with what nemo-edge asks for, with one another, with the GPU's driver.

Compares versions that it is given; imports none of the packages it speaks of.
"""

from __future__ import annotations

__all__ = [
    "Problem",
    "installed",
    "old_driver",
    "overwritten",
    "requirements_of",
    "tensorrt_package",
    "two_cudas",
    "unfit_tensorrt",
    "unmet",
]

from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict

ONNX_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
"""Packages that all install the module `onnxruntime`."""

OLDEST_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580"}
"""CUDA's major version → the oldest Linux driver that runs it: CUDA Toolkit Release Notes, "CUDA Toolkit and Minimum Required
Driver Version for CUDA Minor Version Compatibility"."""

NEWER_DRIVER = "a newer driver (nvidia.com/drivers), which pip cannot install"


class Problem(BaseModel):
    """Something on this machine that does not fit, and what to do about it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    why: str
    """Why it matters."""
    remedy: str
    breaks_build: bool = False
    """Whether `nemo-edge build` cannot be relied on for that, on the CPU."""


def installed() -> dict[str, str]:
    """Return the version of every installed package, by its normalized name."""
    found: dict[str, str] = {}
    for package in distributions():
        name = package.metadata["Name"]
        if name:  # what an interrupted uninstall left has none
            found.setdefault(canonicalize_name(name), package.version)  # the first on the path is the one that is imported
    return found


def requirements_of(package: str) -> tuple[str, ...]:
    """Return what an installed package asks for, its extras too, as in its metadata; nothing where it is not installed."""
    try:
        return tuple(requires(package) or ())
    except PackageNotFoundError:
        return ()


def unmet(
    package: str, requirements: Iterable[str], versions: Mapping[str, str], breaks_build: bool = False, extra: str = ""
) -> tuple[Problem, ...]:
    """Return the requirements of `package` that the installed `versions` do not meet; those of `extra` are taken for its own.

    Those of its other extras are asked of packages that are there, and break nothing where they are not met.
    """
    problems = []
    for requirement in map(Requirement, requirements):
        always = requirement.marker is None or requirement.marker.evaluate({"extra": extra})
        if not always and not _of_an_extra(requirement):
            continue  # for another system or Python
        version = versions.get(canonicalize_name(requirement.name))
        if version is None and not always:
            continue
        if version is not None and requirement.specifier.contains(version, prereleases=True):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        problems.append(
            Problem(
                what=f"{requirement.name} {version} is installed" if version else f"{requirement.name} is not installed",
                why=f"{package} needs {wanted}",
                remedy=f"pip install '{wanted}'",
                breaks_build=breaks_build and always,
            )
        )
    return tuple(problems)


def overwritten(versions: Mapping[str, str]) -> tuple[Problem, ...]:
    """Return a problem where several packages have installed the module `onnxruntime`."""
    found = [f"{name} {versions[name]}" for name in ONNX_RUNTIMES if name in versions]
    if len(found) < 2:
        return ()
    names = " ".join(name for name in ONNX_RUNTIMES if name in versions)
    keep = "onnxruntime-gpu[cuda,cudnn]" if "onnxruntime-gpu" in versions else "onnxruntime"
    return (
        Problem(
            what=f"{' and '.join(found)} are both installed" if len(found) == 2 else f"{', '.join(found)} are all installed",
            why="they write the same files, so that the one installed last decides which providers there are",
            remedy=f"pip uninstall -y {names} && pip install '{keep}'",
        ),
    )


def unfit_tensorrt(versions: Mapping[str, str], linked: int | None = None, cuda: int = 13) -> tuple[Problem, ...]:
    """Return a problem where ONNX Runtime's TensorRT provider cannot use the TensorRT that is installed.

    `linked` is the major version of TensorRT that the provider's library asks the loader for, which is what decides. Where it
    is not known: TensorRT 11 from ONNX Runtime 1.27 on (NVIDIA's migration guide), which a package may still be built without.
    `cuda` is the major version of CUDA of that ONNX Runtime.
    """
    tensorrt = next((v for n, v in versions.items() if n in ("tensorrt", "tensorrt-cu12", "tensorrt-cu13")), None)
    runtime = versions.get("onnxruntime-gpu")
    if tensorrt is None or runtime is None:
        return ()
    has = Version(tensorrt).major
    if linked is not None and linked != has:
        return (
            Problem(
                what=f"tensorrt {tensorrt} is installed, and onnxruntime-gpu {runtime} is linked with TensorRT {linked}",
                why="its provider `tensorrt` cannot load libnvinfer of another major version",
                remedy=f"pip install {tensorrt_package(linked, cuda)}",
            ),
        )
    if linked is None and has >= 11 and Version(runtime) < Version("1.27"):
        return (
            Problem(
                what=f"tensorrt {tensorrt} and onnxruntime-gpu {runtime} are installed",
                why="ONNX Runtime's provider `tensorrt` takes TensorRT 11 from 1.27 on",
                remedy=f"pip install 'onnxruntime-gpu>=1.27', or {tensorrt_package(10, cuda)}",
            ),
        )
    return ()


def tensorrt_package(major: int, cuda: int = 13) -> str:
    """Return what to give `pip install` for a major version of TensorRT; its libraries are on NVIDIA's own index."""
    return f"'tensorrt-cu{cuda}=={major}.*' --extra-index-url https://pypi.nvidia.com"


def two_cudas(torch_cuda: str | None, runtime_cuda: str | None) -> tuple[Problem, ...]:
    """Return a problem where PyTorch and ONNX Runtime are built for different major versions of CUDA."""
    if not torch_cuda or not runtime_cuda or _major(torch_cuda) == _major(runtime_cuda):
        return ()
    wanted = "onnxruntime-gpu<1.27" if _major(torch_cuda) < 13 else "onnxruntime-gpu>=1.27"
    return (
        Problem(
            what=f"torch is built for CUDA {torch_cuda}, onnxruntime-gpu for CUDA {runtime_cuda}",
            why=f"ONNX Runtime's GPU providers then miss the CUDA {_major(runtime_cuda)} libraries that torch would have loaded for them",
            remedy=f"pip install '{wanted}' (up to 1.26 it is built for CUDA 12, from 1.27 on for CUDA 13)",
        ),
    )


def old_driver(drivers: Iterable[str], cuda: str | None, what: str = "torch") -> tuple[Problem, ...]:
    """Return a problem for each GPU driver that is too old for the CUDA that `what` is built for."""
    oldest = OLDEST_DRIVERS.get(_major(cuda)) if cuda else None
    if oldest is None:
        return ()
    return tuple(
        Problem(
            what=f"the GPU's driver is {driver}",
            why=f"{what} is built for CUDA {cuda}, which needs driver {oldest} or newer",
            remedy=NEWER_DRIVER,
        )
        for driver in sorted(set(drivers))
        if _is_version(driver) and Version(driver) < Version(oldest)
    )


def _of_an_extra(requirement: Requirement) -> bool:
    """Whether it holds on this system with one of the package's extras."""
    marker = requirement.marker
    named = [part.split("'")[1] if "'" in part else part.split('"')[1] for part in str(marker).split("extra ==")[1:]]
    return marker is not None and any(marker.evaluate({"extra": extra}) for extra in named)


def _is_version(text: str) -> bool:
    try:
        return bool(Version(text))
    except InvalidVersion:
        return False


def _major(version: str) -> int:
    return Version(version).major
