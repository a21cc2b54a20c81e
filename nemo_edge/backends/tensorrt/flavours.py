"""The two products named TensorRT, in one table: what is different between them, and what each asks of this machine.

Everything else (parsing, profiles, building, running) is the same for both and knows neither.
"""

from __future__ import annotations

__all__ = [
    "FLAVOURS",
    "Product",
    "builder_flags",
    "check",
    "check_runtime",
    "first_gpu",
    "fit_here",
    "load_product",
    "product_version",
    "runtime_settings",
    "this_capability",
]

import importlib
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_edge.backends.tensorrt.fit import Fit, check_here
from nemo_edge.backends.tensorrt.plans import PlanFile, read_header
from nemo_edge.recipe.targets import Flavour, PlanSettings, TensorRtRtxSettings, TensorRtSettings
from nemo_edge.system.compatibility import installed
from nemo_edge.system.environment import Gpu, gpus
from nemo_edge.system.errors import InputError, MissingDependency, first_line

_REFIT_FLAGS = {"none": (), "value_weights": ("REFIT_INDIVIDUAL",), "all": ("REFIT",)}
_WRONG_REFIT = "11.3."
"""NVIDIA's notes of 11.3 say that a GEMM's bias may be dropped when an engine is refitted."""


@dataclass(frozen=True)
class Product:
    """One row: how a product is imported and installed, what its plans are called, and what it promises of them."""

    flavour: Flavour
    title: str
    module: str
    install: str
    suffix: str
    table: str
    """Name of its table in the recipe."""
    settings: type[PlanSettings]
    builds_without_gpu: bool
    systems: str | None
    """Operating systems its plans are for; None for the one they are built on."""
    reproducible: bool
    captures_graphs: bool
    """Whether its runtime records CUDA graphs itself, and keeps a cache of the kernels it compiles."""


FLAVOURS: dict[Flavour, Product] = {
    "tensorrt": Product(
        flavour="tensorrt",
        title="TensorRT",
        module="tensorrt",
        install="pip install 'nemo-edge[tensorrt]' --extra-index-url https://pypi.nvidia.com",
        suffix=".plan",
        table="tensorrt",
        settings=TensorRtSettings,
        builds_without_gpu=False,
        systems=None,
        reproducible=False,
        captures_graphs=False,
    ),
    "tensorrt-rtx": Product(
        flavour="tensorrt-rtx",
        title="TensorRT-RTX",
        module="tensorrt_rtx",
        install="pip install 'nemo-edge[rtx]'",
        suffix=".engine",
        table="tensorrt_rtx",
        settings=TensorRtRtxSettings,
        builds_without_gpu=True,
        systems="Linux and Windows",
        reproducible=False,
        captures_graphs=True,
    ),
}
"""Flavour → what is different about it."""


def check(flavour: Flavour, settings: PlanSettings) -> None:
    """Find out, before hours of work, whether engines can be built here.

    Raises `MissingDependency` where the package, a GPU it needs or something `settings` ask of its version is not there,
    `InputError` for settings that this version does not carry out rightly.
    """
    product = FLAVOURS[flavour]
    if not isinstance(settings, product.settings):
        raise InputError(f"{product.title} is set up in the recipe's table [{product.table}], not with {type(settings).__name__}")
    if not product.builds_without_gpu and not gpus():
        raise MissingDependency(
            f"{product.title} builds engines on the GPU they are for, and nvidia-smi sees none here: build on a machine with that GPU, "
            f"or take TensorRT-RTX ([{FLAVOURS['tensorrt-rtx'].table}]), which compiles without one"
        )
    trt = load_product(flavour)
    missing = _missing(trt, settings)
    if missing:
        raise MissingDependency(
            f"{product.title} {trt.__version__} has no {missing[0]}: {product.install.replace('install ', 'install --upgrade ', 1)}, "
            f"or change [{product.table}]"
        )
    if isinstance(settings, TensorRtSettings) and settings.refit != "none" and trt.__version__.startswith(_WRONG_REFIT):
        raise InputError(
            f"{product.title} {trt.__version__} can drop a bias when it refits weights: take 11.4 or later, or set tensorrt.refit = 'none'"
        )


def check_runtime(flavour: Flavour) -> tuple[str, str]:
    """Return compute capability and name of the GPU that engines run on here.

    Raises `MissingDependency` where the package, a GPU, or a PyTorch that sees it is not there.
    """
    load_product(flavour)
    here, title = this_capability(), FLAVOURS[flavour].title
    if here is None:
        raise MissingDependency(f"{title} runs on an NVIDIA GPU, and nvidia-smi sees none here: run it on a machine that has one")
    if not _torch_sees_gpu():
        raise MissingDependency(
            f"{title} runs beside PyTorch, which does not see the {here[1]} that nvidia-smi sees: update the driver, install a PyTorch "
            "built for CUDA, or let CUDA_VISIBLE_DEVICES name the GPU; `nemo-edge doctor` says more"
        )
    return here


def load_product(flavour: Flavour) -> Any:
    """Import a product's module. Raises `MissingDependency` with the command that installs it."""
    product = FLAVOURS[flavour]
    try:
        return importlib.import_module(product.module)
    except ModuleNotFoundError as error:
        if error.name == product.module:
            raise MissingDependency(f"{product.title} is not installed: {product.install}") from error
        raise MissingDependency(_broken(product, error)) from error
    except (ImportError, OSError) as error:  # its own libraries, or CUDA's, do not load
        raise MissingDependency(_broken(product, error)) from error


def product_version(flavour: Flavour) -> str:
    """Return the version of an installed product. Raises `MissingDependency` as `load_product`."""
    return str(load_product(flavour).__version__)


def builder_flags(settings: PlanSettings, refit_values: bool) -> tuple[str, ...]:
    """Return the names of the `BuilderFlag`s that settings ask for; `refit_values`: whether the graph has value layers."""
    if not isinstance(settings, TensorRtSettings):
        return ()
    wanted = [*(_REFIT_FLAGS[settings.refit] if refit_values or settings.refit == "all" else ())]
    wanted += ["VERSION_COMPATIBLE"] if settings.version_compatible else []
    wanted += ["WEIGHT_STREAMING"] if settings.weight_streaming else []
    return tuple(wanted)


def runtime_settings(settings: PlanSettings) -> dict[str, str | int | bool | None]:
    """Return the settings as a sidecar records them; the times of kernels are in a file of this machine, whose path is left out."""
    values = settings.model_dump(exclude={"components", "profiles", "targets", "timing_cache"})
    return {**values, **({"timing_cache": settings.timing_cache is not None} if isinstance(settings, TensorRtSettings) else {})}


def first_gpu() -> Gpu | None:
    """Return the GPU on which engines are built and run, CUDA's device 0; None where there is none.

    That need not be the first of `nvidia-smi`: CUDA puts the fastest first, and CUDA_VISIBLE_DEVICES any. Of GPUs of one kind the
    first stands for all.
    """
    found = gpus()
    alike = len({(gpu.compute_capability, gpu.name) for gpu in found}) < 2
    own = None if alike else _device_0()
    if own is None:
        return found[0] if found else None
    return min(found, key=lambda gpu: (gpu.compute_capability != own[0], gpu.name != own[1]))


def fit_here(bundle: Path, plan: PlanFile) -> Fit:
    """Say whether the first GPU of this machine, on which engines are opened, runs a plan."""
    gpu = first_gpu()
    return check_here(plan, read_header(bundle / plan.plan), (gpu,) if gpu else (), installed(), platform.system())


def this_capability() -> tuple[str, str] | None:
    """Return compute capability (`sm90`) and name of the first GPU; None where there is none."""
    gpu = first_gpu()
    return (f"sm{gpu.compute_capability.replace('.', '')}", gpu.name) if gpu else None


def _torch_sees_gpu() -> bool:
    import torch

    with warnings.catch_warnings(action="ignore"):  # of an old driver, which the caller tells
        return torch.cuda.is_available()


def _device_0() -> tuple[str, str] | None:
    """Compute capability and name of CUDA's device 0; None where PyTorch sees none."""
    import torch

    if not _torch_sees_gpu():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return f"{major}.{minor}", torch.cuda.get_device_name(0)


def _missing(trt: Any, settings: PlanSettings) -> list[str]:
    """What settings ask for and this version does not have, by name."""
    if isinstance(settings, TensorRtRtxSettings):
        names = [f"ComputeCapability.{target.upper()}" for target in settings.targets]
    else:
        names = [f"BuilderFlag.{name}" for name in builder_flags(settings, refit_values=True)]
        level = settings.hardware_compatibility if isinstance(settings, TensorRtSettings) else "none"
        names += [f"HardwareCompatibilityLevel.{level.upper()}"] if level != "none" else []
    return [name for name in names if not hasattr(getattr(trt, name.partition(".")[0], None), name.partition(".")[2])]


def _broken(product: Product, error: Exception) -> str:
    again = product.install.replace("install ", "install --force-reinstall ", 1)
    return f"{product.title} cannot be imported ({first_line(error)}): {again}"
