"""Whether a machine can run a plan, and what to do where it cannot: its version of TensorRT, its GPUs, its operating system.

Compares what it is given; looks at no file and no machine, and imports nothing of TensorRT.
"""

from __future__ import annotations

__all__ = ["Fit", "check_here", "gpus_of", "product_of", "serves"]

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict

from nemo_edge.backends.tensorrt.plans import Header, PlanFile
from nemo_edge.recipe.targets import COMPUTE_CAPABILITIES, Flavour
from nemo_edge.system.environment import Gpu, packages_of

_PORTABLE = ("sm80", "sm86", "sm89")
_LATER = 120
"""TensorRT-RTX's portable choice: 8.0, 8.6, 8.9, "12.0 and later"."""
_ACROSS = ((8, 10), (10, 11))
"""Majors across which a version-compatible engine runs (support matrix of TensorRT 11.4); no others."""
_PRODUCTS = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_NOT_SERVED = {"sm90": "Hopper", "sm100": "Blackwell B200", "sm103": "Blackwell B300"}
_REBUILD = "`nemo-edge build` on this machine"
_SIDECAR = "fetch its sidecar, the .json of the same name, too"
_AGAIN = "fetch it again, or build it again with `nemo-edge build`"


class Fit(BaseModel):
    """Whether a machine can run a plan, in the words of who deploys it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs: bool | None
    """None where nothing speaks against it, and a plan without a sidecar does not tell enough to say so."""
    reason: str
    remedy: str = ""
    """The command, or the change of the recipe, that mends it."""


class _Misfit(NamedTuple):
    wants: str
    has: str
    remedy: str
    rebuild: bool = False
    """Whether the remedy is another build, which has the right version by itself when it is made here."""
    only_here: str = ""
    """The remedy where the version does not fit either."""


def check_here(plan: PlanFile | None, header: Header, gpus: Sequence[Gpu], versions: Mapping[str, str], system: str) -> Fit:
    """Say whether a machine can run a plan, or all that keeps it from that.

    `versions` are those of its installed packages by normalized name, `system` is `platform.system()`. A plan without a sidecar
    is judged by its header. Opens nothing.
    """
    changed = _changes(plan, header) if plan else []
    if changed:
        return Fit(runs=False, reason=f"the plan is not the one that its sidecar describes: {', '.join(changed)}", remedy=_AGAIN)
    package, version = _installed(header.flavour, versions)
    gpu = _gpu_misfit(plan, header, gpus)
    other = _version_misfit(plan, header, package, version)
    if other and gpu and gpu.rebuild:
        other, gpu = other._replace(remedy=""), gpu._replace(remedy=gpu.only_here or gpu.remedy)
    misfits = [m for m in (_system_misfit(plan, system), other, gpu) if m]
    if misfits:
        wants, has = _and(m.wants for m in misfits), _and(m.has for m in misfits)
        remedies = dict.fromkeys(m.remedy for m in misfits if m.remedy)
        return Fit(runs=False, reason=f"built for {wants}; this machine has {has}", remedy=", and ".join(remedies))
    return _fit(plan, header, gpus, f"{product_of(header.flavour)} {version}")


def product_of(flavour: Flavour) -> str:
    """Return a flavour's name as NVIDIA writes it."""
    return _PRODUCTS[flavour]


def gpus_of(flavour: Flavour, targets: Sequence[str]) -> str:
    """Return in words which GPUs the targets of a plan are."""
    portable = "sm80, sm86, sm89, sm120 and later" if flavour == "tensorrt-rtx" else "an unnamed GPU"
    return _and(targets) or portable


def serves(flavour: Flavour, targets: Sequence[str], sm: str) -> bool:
    """Whether an engine for some targets, or for TensorRT-RTX's portable choice, runs on GPUs of a compute capability (`sm89`)."""
    if flavour == "tensorrt-rtx" and not targets:
        return sm in _PORTABLE or _capability(sm) >= _LATER
    return sm in targets


def _fit(plan: PlanFile | None, header: Header, gpus: Sequence[Gpu], runtime: str) -> Fit:
    """What is said of a plan that nothing speaks against."""
    targets = plan.targets if plan else header.targets
    if targets is None:
        return Fit(runs=None, reason=f"{runtime} is here; which GPU it was built on is not in its header", remedy=_SIDECAR)
    served = [gpu for gpu in gpus if _serves(plan, header, targets, _sm(gpu))]
    names = _and(f"{gpu.name} ({_sm(gpu)})" for gpu in served)
    strict = plan is not None and header.flavour == "tensorrt" and plan.hardware_compatibility in (None, "NONE")
    if strict and plan and plan.built_on and all(gpu.name != plan.built_on for gpu in served):
        remedy = f"time it, or {_REBUILD}"
        return Fit(runs=True, reason=f"{runtime} and {names}; built on {plan.built_on}, and may be slower on another model", remedy=remedy)
    return Fit(runs=True, reason=f"{runtime} and {names}")


def _changes(plan: PlanFile, header: Header) -> list[str]:
    """Where a plan's header contradicts its sidecar."""
    changes = []
    if plan.backend != header.flavour or not _same_bytes(plan.version, header.version):
        found, told = f"{product_of(header.flavour)} {header.version}", f"{product_of(plan.backend)} {plan.version}"
        changes.append(f"it is of {found}, not {told}")
    if plan.size_bytes != header.size_bytes:
        changes.append(f"it has {header.size_bytes} bytes, not {plan.size_bytes}")
    if header.targets is not None and set(plan.targets) != set(header.targets):
        changes.append(f"it is for {gpus_of(header.flavour, header.targets)}, not {gpus_of(plan.backend, plan.targets)}")
    return changes


def _same_bytes(one: str, other: str) -> bool:
    """Whether two versions can be one; a header keeps the last byte only of each number."""
    return all(a % 256 == b % 256 for a, b in zip(_release(one), _release(other), strict=False))


def _system_misfit(plan: PlanFile | None, system: str) -> _Misfit | None:
    if plan is None or system in plan.system:
        return None
    return _Misfit(plan.system, system, _REBUILD if system in ("Linux", "Windows") else f"run it on {plan.system}")


def _version_misfit(plan: PlanFile | None, header: Header, package: str, version: str | None) -> _Misfit | None:
    """An engine needs the very version it was built with, unless it was built to be version-compatible."""
    built, product = plan.version if plan else header.version, product_of(header.flavour)
    index = "" if header.flavour == "tensorrt-rtx" else " --extra-index-url https://pypi.nvidia.com"
    install = f"`pip install '{package}=={built}'{index}`"
    if version is None:
        return _Misfit(f"{product} {built}", f"no {product}", install)
    theirs, ours = _release(built), _release(version)
    shortest = min(len(theirs), len(ours))
    same = theirs[:shortest] == ours[:shortest]
    if same or (plan and "VERSION_COMPATIBLE" in plan.flags and _reads(theirs, ours)):
        return None
    remedy = f"{install}, or {_REBUILD}"
    if header.flavour == "tensorrt" and theirs < ours and theirs[:1] == ours[:1]:
        remedy += ", or build it with version_compatible = true under [tensorrt]"
    return _Misfit(f"{product} {built}", version, remedy)


def _reads(built: tuple[int, ...], runs: tuple[int, ...]) -> bool:
    """Whether a runtime takes a version-compatible engine."""
    return (built[0] == runs[0] and built <= runs) or (built[0], runs[0]) in _ACROSS


def _gpu_misfit(plan: PlanFile | None, header: Header, gpus: Sequence[Gpu]) -> _Misfit | None:
    targets = plan.targets if plan else header.targets
    wants = "an NVIDIA GPU" if targets is None else gpus_of(header.flavour, targets)
    if plan and plan.hardware_compatibility == "AMPERE_PLUS":
        wants = "sm80 and later"
    if not gpus:
        return _Misfit(wants, "no NVIDIA GPU with a driver", "run it where there is one (in a container: docker run --gpus all)")
    here = sorted({_sm(gpu) for gpu in gpus}, key=_capability)
    if targets is None or any(_serves(plan, header, targets, sm) for sm in here):
        return None
    if header.flavour == "tensorrt":
        return _Misfit(wants, _and(here), _remedy(targets, here), rebuild=True, only_here=_REBUILD)
    remedy = _rtx_remedy(targets, here)
    return _Misfit(wants, _and(here), remedy, rebuild=True, only_here=remedy.replace("`nemo-edge build` again", _REBUILD))


def _serves(plan: PlanFile | None, header: Header, targets: Sequence[str], sm: str) -> bool:
    ampere = plan is not None and plan.hardware_compatibility == "AMPERE_PLUS"
    return serves(header.flavour, targets, sm) or (ampere and _capability(sm) >= 80)


def _rtx_remedy(targets: Sequence[str], here: Sequence[str]) -> str:
    known = [sm for sm in here if sm in COMPUTE_CAPABILITIES]
    if known:
        wanted = [f'"{sm}"' for sm in COMPUTE_CAPABILITIES if not targets or sm in (*targets, known[-1])]
        return f"set targets = [{', '.join(wanted)}] under [tensorrt_rtx] of the recipe and `nemo-edge build` again"
    if any(_capability(sm) >= _LATER for sm in here):
        return "leave targets out under [tensorrt_rtx] of the recipe and `nemo-edge build` again"
    names = _and(f"{sm} ({_NOT_SERVED[sm]})" if sm in _NOT_SERVED else sm for sm in here)
    return f"TensorRT-RTX does not serve {names}: put [tensorrt] into the recipe and {_REBUILD}"


def _remedy(targets: Sequence[str], here: Sequence[str]) -> str:
    if all(_capability(sm) >= 80 for sm in (*targets, here[-1])):
        return f'{_REBUILD}, or where it was built with hardware_compatibility = "ampere_plus" under [tensorrt]'
    return _REBUILD


def _installed(flavour: Flavour, versions: Mapping[str, str]) -> tuple[str, str | None]:
    """The package of a flavour, and its version where it is installed."""
    found = next(iter(packages_of(flavour, versions)), None)
    return (found, versions[found]) if found else (f"{flavour}-cu13", None)


def _sm(gpu: Gpu) -> str:
    return f"sm{gpu.compute_capability.replace('.', '')}"


def _capability(sm: str) -> int:
    digits = sm.removeprefix("sm")
    return int(digits) if digits.isdigit() else 0


def _release(version: str) -> tuple[int, ...]:
    try:
        return Version(version).release[:4]
    except InvalidVersion:
        return ()


def _and(parts: Iterable[str]) -> str:
    *first, last = [*parts] or [""]
    return f"{', '.join(first)} and {last}" if first else last
