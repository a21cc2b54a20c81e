"""What machine this is: processor, memory, GPUs and their state, versions. Recorded with every number that depends on it.

Imports nothing heavy: versions come from the installed packages' metadata, GPUs from `nvidia-smi`.
"""

from __future__ import annotations

__all__ = [
    "DOT_PRODUCTS",
    "PACKAGES",
    "USED",
    "Gpu",
    "Int8",
    "Machine",
    "bf16_instructions",
    "cores",
    "gpus",
    "importable",
    "int8_products",
    "machine",
    "packages",
    "packages_of",
]

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

USED = (
    "nemo-edge",
    "torch",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "torchmetrics",
    "numpy",
)
"""Packages whose versions a build's results depend on."""

PACKAGES = (*USED, "peft", "openvino")
"""Those, the one that fuses LoRAs, and those of backends that builds do not use; TensorRT's have more than one name (`packages_of`)."""

_QUERY = "name,driver_version,memory.total,compute_cap,clocks.sm,clocks.max.sm,temperature.gpu"
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
"""Why a clock is not at its highest; drivers before 535 know the second name only, and refuse the whole question otherwise."""
_THROTTLES = {
    0x1: "idle",
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "hardware power brake",
    0x100: "display clocks",
}
"""Bits of NVML's clock event reasons (nvmlClocksEventReasons in nvml.h)."""


DOT_PRODUCTS = "VNNI on x86, dot products on Arm"
"""The instructions that add up products of 8-bit integers."""
Int8 = Literal["fast", "slow", "overflows"]
"""How a CPU adds up products of 8-bit integers: with an instruction for it (VNNI, Arm's dot product), with several, or, on an x86 before
VNNI, with one that adds two of them in 16 bits, where they overflow."""


class Gpu(BaseModel):
    """One NVIDIA GPU and its state at the time of asking."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    driver: str
    memory_mib: int
    compute_capability: str
    clock_mhz: int | None = None
    highest_clock_mhz: int | None = None
    temperature_c: int | None = None
    throttled_by: tuple[str, ...] = ()
    """Why the clock is not at its highest, in NVML's terms."""


class Machine(BaseModel):
    """The machine that a number is from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    system: str
    python: str
    cpu: str
    cores: int
    """Logical cores this process may use."""
    memory_gib: int
    governor: str | None = None
    """The frequency governor of the cores, where the system tells it."""
    gpus: tuple[Gpu, ...] = ()
    versions: dict[str, str]
    """Versions of the packages that matter."""

    @property
    def words(self) -> str:
        """The machine in a few words, for tables and captions."""
        return ", ".join([f"{self.cores} cores of {self.cpu}", *(gpu.name for gpu in self.gpus)])


def machine() -> Machine:
    """Describe this machine."""
    return Machine(
        system=platform.platform(terse=True),
        python=platform.python_version(),
        cpu=_cpu(),
        cores=cores(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30) if hasattr(os, "sysconf") else 0,
        governor=_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        gpus=gpus(),
        versions=packages(),
    )


def cores() -> int:
    """Return the logical cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def bf16_instructions() -> bool:
    """Whether the CPU multiplies bfloat16 itself, as Linux tells; elsewhere it is taken to."""
    told = _text(Path("/proc/cpuinfo"))
    return told is None or any(flag in told.split() for flag in ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"))


def int8_products() -> Int8 | None:
    """How this CPU adds up products of 8-bit integers, as Linux tells; None where nobody does."""
    lines = [line.partition(":") for line in (_text(Path("/proc/cpuinfo")) or "").splitlines()]
    told = {key.strip(): value.split() for key, _, value in lines}
    if "flags" in told:
        return "fast" if {"avx512_vnni", "avx_vnni"} & {*told["flags"]} else "overflows"
    if "Features" in told:
        return "fast" if "asimddp" in told["Features"] else "slow"
    return None


def importable(*modules: str) -> bool:
    """Whether all of these top-level modules can be found; none is imported."""
    specs = map(find_spec, modules)
    return all(spec is not None and spec.loader is not None for spec in specs)  # an empty folder of that name has no loader


def packages() -> dict[str, str]:
    """Return the version of each package of `PACKAGES`, and of each of TensorRT, that is installed."""
    found = _tensorrt()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def packages_of(product: str, versions: Mapping[str, str]) -> dict[str, str]:
    """Return those of the packages that bring a product, `tensorrt` or `tensorrt-rtx`, for whatever CUDA; names are normalized."""
    return {name: number for name, number in versions.items() if re.fullmatch(rf"{product}(-cu\d+)?", name)}


def gpus() -> tuple[Gpu, ...]:
    """Return the NVIDIA GPUs that `nvidia-smi` sees; none where there is no driver."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    for reasons in _REASONS:
        command = [tool, f"--query-gpu={_QUERY},{reasons}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired):  # a driver that hangs is none
            return ()
        if done.returncode == 0:
            return tuple(_gpu(line) for line in done.stdout.splitlines() if line.count(",") == _QUERY.count(",") + 1)
    return ()


def _tensorrt() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"] or "").lower()
        if name.startswith("tensorrt"):
            found.setdefault(name, package.version)  # the first on the path is the one that is imported
    return {**packages_of("tensorrt", found), **packages_of("tensorrt-rtx", found)}


def _gpu(line: str) -> Gpu:
    name, driver, memory, capability, clock, highest, temperature, reasons = (part.strip() for part in line.split(","))
    bits = int(reasons, 16) if reasons.startswith("0x") else 0
    return Gpu(
        name=name,
        driver=driver,
        memory_mib=_number(memory) or 0,
        compute_capability=capability,
        clock_mhz=_number(clock),
        highest_clock_mhz=_number(highest),
        temperature_c=_number(temperature),
        throttled_by=tuple(reason for bit, reason in _THROTTLES.items() if bits & bit),
    )


def _number(text: str) -> int | None:
    return int(float(text)) if text.replace(".", "", 1).isdigit() else None


def _cpu() -> str:
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
