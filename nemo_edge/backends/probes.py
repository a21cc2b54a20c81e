"""What of the backends works on this machine, found out by trying: a compiler is run, a provider opened, an engine compiled.

A package that is not there, or breaks when it is imported, is an answer and not an error.
"""

from __future__ import annotations

__all__ = ["Probe", "RuntimeLinks", "import_problems", "probe_all", "runtime_links"]

import ctypes
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from nemo_edge.system.compatibility import NEWER_DRIVER, Problem, tensorrt_package
from nemo_edge.system.environment import Gpu, importable
from nemo_edge.system.errors import MissingDependency, first_line

NEEDED = {
    "torch": "runs the checkpoint",
    "onnx": "checks ONNX files",
    "onnxscript": "is what torch exports with",
    "onnxruntime": "runs the engines",
    "diffusers.pipelines.stable_diffusion": "opens checkpoints",
}
"""Modules that `build` cannot do without and that break at import when their own requirements are not met, and what for."""

BROKEN = (ImportError, OSError, RuntimeError, AttributeError, TypeError, ValueError)
"""What a package raises at import when its libraries or its requirements do not fit."""

NO_GPU = "no NVIDIA GPU with a driver here"
GET_GPU = "an NVIDIA GPU and its driver (nvidia.com/drivers), which pip cannot install"
GET_DRIVER = "start the container with its GPUs (docker run --gpus all), or install the driver"
RTX_TARGETS = ("7.5", "8.0", "8.6", "8.9")
RTX_FROM = 12.0
"""What TensorRT-RTX 1.7 compiles for: 7.5 where it is asked for, 8.0, 8.6, 8.9, "12.0 and later"; Hopper, 9.0, and 10.0 are not
among them."""
_DRIVER = "libcuda.so.1"
"""The driver's own library; a container has it only when it is started with its GPUs."""
_HEADERS = "#include <Python.h>\n#include <vector>\n"
_GPU_LIBRARIES = rb"lib(?:cuda|cudart|cudnn|cublas|cublasLt|curand|cufft|nvinfer|nvonnxparser)\.so\.\d+"


class Probe(BaseModel):
    """One backend with one of its providers, on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backend: str
    provider: str = ""
    version: str | None = None
    used_by_build: bool
    """Whether `nemo-edge build` can use it in this version of nemo-edge."""
    compiles: bool | None
    """Whether engines for it can be made here; None where there is nothing to compile."""
    runs: bool
    """Whether it runs here."""
    reason: str = ""
    """Why not, or what it leaves out, in one line."""
    remedy: str = ""
    """The command that installs or mends it."""

    @property
    def name(self) -> str:
        """Backend and provider."""
        return f"{self.backend} {self.provider}".strip()


class RuntimeLinks(NamedTuple):
    """What the libraries of the installed ONNX Runtime ask the loader for."""

    tensorrt: int | None
    """Major version of TensorRT; None where there is no TensorRT provider, or the system's libraries are not ELF files."""
    missing: Mapping[str, tuple[str, ...]]
    """Provider → GPU libraries that cannot be loaded here."""


class _Answer(NamedTuple):
    compiles: bool | None
    runs: bool
    reason: str = ""
    remedy: str = ""


_WITHOUT_TORCH = _Answer(None, False, "not installed", "pip install 'nemo-edge[build]'")


def import_problems(versions: Mapping[str, str]) -> tuple[Problem, ...]:
    """Import what `build` cannot do without; return what breaks. `versions` are those of the installed packages."""
    problems = []
    for module, use in NEEDED.items():
        package = module.partition(".")[0]
        package = _runtime_package(versions) if package == "onnxruntime" else package
        try:
            with _silent():
                importlib.import_module(module)
        except BROKEN as error:
            problems.append(
                Problem(
                    what=f"{package} cannot be imported: {first_line(error)}",
                    why=f"it {use}",
                    remedy=f"pip install --force-reinstall {package}",
                    breaks_build=True,
                )
            )
    return tuple(problems)


def probe_all(gpus: Sequence[Gpu], versions: Mapping[str, str]) -> tuple[Probe, ...]:
    """Try every backend with each of its providers; `versions` are those of the installed packages."""
    runtime = _runtime_package(versions)
    rtx = next((n for n in versions if n.startswith("tensorrt-rtx-cu") and n.count("-") == 2), "")
    enterprise = next((n for n in ("tensorrt", "tensorrt-cu13", "tensorrt-cu12") if n in versions), "")
    rows: list[tuple[str, str, str, bool, Callable[[Sequence[Gpu]], _Answer]]] = [
        ("torch", "cpu", "torch", True, _torch_cpu),
        ("torch", "cuda", "torch", True, _torch_cuda),
        ("torch", "compile", "torch", True, _torch_compile),
        ("onnxruntime", "cpu", runtime, True, _onnxruntime("cpu", runtime)),
        ("onnxruntime", "cuda", runtime, True, _onnxruntime("cuda", runtime)),
        ("onnxruntime", "tensorrt", runtime, True, _onnxruntime("tensorrt", runtime)),
        ("tensorrt", "", enterprise, True, _tensorrt),
        ("tensorrt-rtx", "", rtx, True, _tensorrt_rtx),
        ("openvino", "", "openvino", True, _openvino),
        ("triton", "client", "tritonclient", False, _triton),
    ]
    with _silent():
        return tuple(
            Probe(backend=b, provider=p, version=versions.get(package), used_by_build=used, **probe(gpus)._asdict())
            for b, p, package, used, probe in rows
        )


def runtime_links() -> RuntimeLinks:
    """Read the libraries of ONNX Runtime's GPU providers, and try to load what they ask for."""
    spec = importlib.util.find_spec("onnxruntime")
    folder = Path(spec.origin).parent / "capi" if spec and spec.origin else Path("none")
    names: dict[str, set[str]] = {}
    for provider in ("cuda", "tensorrt"):
        path = folder / f"libonnxruntime_providers_{provider}.so"
        names[provider] = {n.decode() for n in re.findall(_GPU_LIBRARIES, _start(path))}
    linked = next((int(n.rpartition(".")[2]) for n in names["tensorrt"] if n.startswith("libnvinfer.")), None)
    return RuntimeLinks(linked, {provider: tuple(sorted(n for n in found if not _loads(n))) for provider, found in names.items()})


def _runtime_package(versions: Mapping[str, str]) -> str:
    """The package that installed the module `onnxruntime`; the other one would overwrite it."""
    return next((name for name in ("onnxruntime-gpu", "onnxruntime") if name in versions), "onnxruntime")


def _torch_cpu(_: Sequence[Gpu]) -> _Answer:
    if not importable("torch"):
        return _WITHOUT_TORCH
    try:
        import torch

        torch.ones(2, 2) @ torch.ones(2, 2)
    except BROKEN as error:
        return _Answer(None, False, first_line(error), "pip install --force-reinstall torch")
    return _Answer(None, True)


def _torch_cuda(gpus: Sequence[Gpu]) -> _Answer:
    if not importable("torch"):
        return _WITHOUT_TORCH
    try:
        import torch

        torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")
    except (*BROKEN, AssertionError) as error:  # torch asserts that it was built with CUDA
        if not gpus:
            return _Answer(None, False, NO_GPU, GET_GPU)
        if not _loads(_DRIVER):
            return _Answer(None, False, f"cannot load {_DRIVER}", GET_DRIVER)
        old = "driver" in str(error)
        return _Answer(None, False, first_line(error).partition(". ")[0], NEWER_DRIVER if old else "pip install --force-reinstall torch")
    return _Answer(None, True)


def _torch_compile(_: Sequence[Gpu]) -> _Answer:
    """Run the compiler that inductor takes, with Python's headers, which its kernels include."""
    if not importable("torch"):
        return _WITHOUT_TORCH
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        return _Answer(False, False, f"no C++ compiler ({compiler})", "apt-get install g++, or set CXX")
    command = [compiler, "-x", "c++", "-fsyntax-only", f"-I{sysconfig.get_path('include')}", "-"]
    done = subprocess.run(command, input=_HEADERS, capture_output=True, text=True, check=False, timeout=30)
    if done.returncode == 0:
        return _Answer(True, True)
    if "Python.h" in done.stderr:
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        return _Answer(False, False, f"{compiler} finds no Python.h", f"apt-get install python{version}-dev")
    last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    return _Answer(False, False, f"{compiler} fails: {last}", "apt-get install g++")


def _onnxruntime(provider: str, package: str) -> Callable[[Sequence[Gpu]], _Answer]:
    def probe(gpus: Sequence[Gpu]) -> _Answer:
        try:
            from nemo_edge.backends.onnxruntime import available, probe_provider

            probe_provider(provider)
        except MissingDependency as error:
            return _runtime_answer(provider, gpus, provider in available(), error)
        except BROKEN as error:
            return _Answer(False, False, first_line(error), f"pip install --force-reinstall {package}")
        return _Answer(True, True)

    return probe


def _runtime_answer(provider: str, gpus: Sequence[Gpu], present: bool, error: MissingDependency) -> _Answer:
    """Say why a provider that does not run does not."""
    if not present:
        remedy = "pip uninstall -y onnxruntime && pip install 'onnxruntime-gpu[cuda,cudnn]'"
        return _Answer(False, False, f"this ONNX Runtime is built without its provider {provider}", remedy)
    if not gpus:
        return _Answer(False, False, NO_GPU, GET_GPU)
    links = runtime_links()
    missing = links.missing[provider]
    if not missing:
        return _Answer(False, False, first_line(error), "pip install --force-reinstall 'onnxruntime-gpu[cuda,cudnn]'")
    return _Answer(False, False, f"cannot load {', '.join(missing)}", _library_remedy(missing, links.tensorrt))


def _library_remedy(missing: Sequence[str], tensorrt: int | None) -> str:
    if _DRIVER in missing:
        return GET_DRIVER
    if not any(name.startswith("libnv") for name in missing):
        return "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    wheel = importlib.util.find_spec("tensorrt_libs")
    folder = Path(wheel.origin).parent if wheel and wheel.origin else None
    if folder and any((folder / name).is_file() for name in missing):
        return f"export LD_LIBRARY_PATH={folder}:$LD_LIBRARY_PATH"
    return f"pip install {tensorrt_package(tensorrt or 10)}"


def _tensorrt(gpus: Sequence[Gpu]) -> _Answer:
    trt = _imported("tensorrt", "pip install tensorrt --extra-index-url https://pypi.nvidia.com")
    if isinstance(trt, _Answer):
        return trt
    if not gpus:
        return _Answer(False, False, f"{NO_GPU}: it builds on the GPU it is for", GET_GPU)
    try:
        trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
    except BROKEN as error:
        return _Answer(False, False, first_line(error), "pip install --force-reinstall tensorrt --extra-index-url https://pypi.nvidia.com")
    return _Answer(True, True)


def _tensorrt_rtx(gpus: Sequence[Gpu]) -> _Answer:
    """Compile a multiplication for SM 8.6, which takes no GPU."""
    trt = _imported("tensorrt_rtx", "pip install 'nemo-edge[rtx]'")
    if isinstance(trt, _Answer):
        return trt
    try:
        builder = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR))
        network, config = builder.create_network(), builder.create_builder_config()
        x = network.add_input("x", trt.float32, (4, 4))
        network.mark_output(network.add_matrix_multiply(x, trt.MatrixOperation.NONE, x, trt.MatrixOperation.NONE).get_output(0))
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        compiles = builder.build_serialized_network(network, config) is not None
    except BROKEN as error:
        return _Answer(False, False, first_line(error), "pip install --force-reinstall 'nemo-edge[rtx]'")
    served = [gpu for gpu in gpus if _rtx_serves(gpu.compute_capability)]
    left = [f"{gpu.name} (compute capability {gpu.compute_capability})" for gpu in gpus if gpu not in served]
    if left:
        return _Answer(compiles, bool(served), f"does not target {', '.join(left)}", "for those GPUs take tensorrt, or onnxruntime cuda")
    return _Answer(compiles, bool(served), "" if served else f"{NO_GPU}; its engines are compiled without one", "" if served else GET_GPU)


def _rtx_serves(capability: str) -> bool:
    return capability in RTX_TARGETS or (capability.replace(".", "", 1).isdigit() and float(capability) >= RTX_FROM)


def _openvino(_: Sequence[Gpu]) -> _Answer:
    from nemo_edge.backends.openvino import DTYPES, available, capabilities, without_telemetry

    without_telemetry()
    openvino = _imported("openvino", "pip install 'nemo-edge[openvino]'")
    if isinstance(openvino, _Answer):
        return openvino
    try:
        devices = available()
        lacking = [dtype for dtype in DTYPES if dtype not in capabilities("cpu")] if "cpu" in devices else []
    except BROKEN as error:
        return _Answer(False, False, first_line(error), "pip install --force-reinstall openvino")
    if not devices:
        return _Answer(False, False, "it finds no device")
    return _Answer(True, True, f"this CPU has no instructions for {' and '.join(lacking)}" if lacking else "")


def _triton(_: Sequence[Gpu]) -> _Answer:
    client = _imported("tritonclient.grpc", "pip install 'nemo-edge[serve]'")
    return client if isinstance(client, _Answer) else _Answer(None, True)


def _imported(module: str, install: str) -> ModuleType | _Answer:
    """The module, or the answer that it is not there."""
    package = module.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return _Answer(False, False, "not installed", install)
    try:
        return importlib.import_module(module)
    except BROKEN as error:
        again = install.replace("install ", "install --force-reinstall ", 1)
        return _Answer(False, False, f"cannot be imported: {first_line(error)}", again)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _start(path: Path) -> bytes:
    """The first 4 MiB of a library, where the names of what it is linked with are; nothing where there is no such file."""
    try:
        with path.open("rb") as file:
            return file.read(4 * 2**20)
    except OSError:
        return b""


@contextmanager
def _silent() -> Iterator[None]:
    """Both standard streams away while libraries are loaded: native code writes past Python's, and past `--json`."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, former in enumerate(kept, 1):
            os.dup2(former, number)
            os.close(former)
        os.close(nowhere)
