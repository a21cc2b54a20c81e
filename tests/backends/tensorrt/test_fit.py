"""Whether a machine can run a plan: every reason why not, and what to do about it, in a table."""

from __future__ import annotations

from typing import Any

import plans
import pytest

from nemo_edge.backends.tensorrt.fit import Fit, check_here, gpus_of
from nemo_edge.backends.tensorrt.plans import Header, PlanFile
from nemo_edge.system.environment import Gpu

RTX = {"tensorrt-rtx-cu13": "1.7.1.116"}
TRT = {"tensorrt": "11.4.0.106"}


def gpu(capability: str, name: str = "") -> Gpu:
    return Gpu(name=name or f"NVIDIA {capability}", driver="580.95.05", memory_mib=24564, compute_capability=capability)


def header_of(plan: PlanFile, **changes: Any) -> Header:
    targets = plan.targets if plan.backend == "tensorrt-rtx" else None
    values = {"flavour": plan.backend, "version": plan.version, "size_bytes": plan.size_bytes, "targets": targets}
    return Header.model_validate({**values, **changes})


def fit(plan: PlanFile, versions: dict[str, str], *capabilities: str, system: str = "Linux", **changes: Any) -> Fit:
    return check_here(plan, header_of(plan, **changes), [gpu(c) for c in capabilities], versions, system)


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0", "12.1", "13.0"])
@pytest.mark.parametrize("system", ["Linux", "Windows"])
def test_a_portable_engine_runs_on_what_tensorrt_rtx_chose(capability: str, system: str) -> None:
    found = fit(plans.sidecar(), RTX, capability, system=system)
    assert found == Fit(runs=True, reason=f"TensorRT-RTX 1.7.1.116 and NVIDIA {capability} (sm{capability.replace('.', '')})")


def test_one_gpu_of_several_is_enough_and_named() -> None:
    found = fit(plans.sidecar(targets=("sm86",)), RTX, "9.0", "8.6")
    assert (found.runs, found.reason) == (True, "TensorRT-RTX 1.7.1.116 and NVIDIA 8.6 (sm86)")


@pytest.mark.parametrize(
    ("targets", "capability", "wants", "remedy"),
    [
        ((), "7.5", "sm80, sm86, sm89, sm120 and later", 'set targets = ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]'),
        (("sm86",), "8.9", "sm86", 'set targets = ["sm86", "sm89"] under [tensorrt_rtx] of the recipe and `nemo-edge build` again'),
        (("sm86", "sm89"), "12.0", "sm86 and sm89", 'set targets = ["sm86", "sm89", "sm120"]'),
        (("sm86",), "12.3", "sm86", "leave targets out under [tensorrt_rtx]"),
        ((), "9.0", "sm80, sm86, sm89, sm120 and later", "TensorRT-RTX does not serve sm90 (Hopper): put [tensorrt] into the recipe"),
        ((), "10.0", "sm80, sm86, sm89, sm120 and later", "does not serve sm100 (Blackwell B200)"),
        ((), "8.7", "sm80, sm86, sm89, sm120 and later", "does not serve sm87: put [tensorrt]"),
    ],
)
def test_another_gpu_of_tensorrt_rtx(targets: tuple[str, ...], capability: str, wants: str, remedy: str) -> None:
    found = fit(plans.sidecar(targets=targets), RTX, capability)
    assert found.runs is False
    assert found.reason == f"built for {wants}; this machine has sm{capability.replace('.', '')}"
    assert found.remedy.startswith(remedy) or remedy in found.remedy


@pytest.mark.parametrize("version", ["1.7.0.23", "1.8.0.5", "2.0.0.1"])
def test_tensorrt_rtx_needs_the_very_version(version: str) -> None:
    found = fit(plans.sidecar(), {"tensorrt-rtx-cu12": version}, "8.6")
    assert (found.runs, found.reason) == (False, f"built for TensorRT-RTX 1.7.1.116; this machine has {version}")
    assert found.remedy == "`pip install 'tensorrt-rtx-cu12==1.7.1.116'`, or `nemo-edge build` on this machine"


@pytest.mark.parametrize(
    ("built", "here", "flags", "runs"),
    [
        ("11.4.0.106", "11.4.0.106", (), True),
        ("11.4.0.106", "11.4.0.106.post1", (), True),
        ("11.4.0.106", "11.4.0", (), True),
        ("11.4.0.106", "11.4.1.12", (), False),
        ("11.4.0.106", "11.2.0.5", (), False),
        ("11.4.0.106", "11.4.1.12", ("VERSION_COMPATIBLE",), True),
        ("11.4.0.106", "11.10.0.1", ("VERSION_COMPATIBLE",), True),
        ("11.4.0.106", "11.2.0.5", ("VERSION_COMPATIBLE",), False),
        ("10.13.3.9", "11.4.0.106", ("VERSION_COMPATIBLE",), True),
        ("10.13.3.9", "11.4.0.106", (), False),
        ("8.6.1.6", "11.4.0.106", ("VERSION_COMPATIBLE",), False),
        ("11.4.0.106", "12.0.0.1", ("VERSION_COMPATIBLE",), False),
    ],
)
def test_the_version_of_tensorrt(built: str, here: str, flags: tuple[str, ...], runs: bool) -> None:
    found = fit(plans.standard_sidecar(version=built, flags=flags), {"tensorrt-cu13": here}, "9.0")
    assert found.runs is runs
    if not runs:
        assert found.reason == f"built for TensorRT {built}; this machine has {here}"
        assert f"`pip install 'tensorrt-cu13=={built}' --extra-index-url https://pypi.nvidia.com`" in found.remedy


def test_version_compatible_is_recommended_where_it_would_have_helped() -> None:
    later, earlier = (fit(plans.standard_sidecar(), {"tensorrt": v}, "9.0") for v in ("11.5.0.1", "11.2.0.5"))
    assert later.remedy.endswith("or build it with version_compatible = true under [tensorrt]")
    assert "version_compatible" not in earlier.remedy


@pytest.mark.parametrize(
    ("level", "built", "here", "runs", "remedy"),
    [
        (None, "sm90", "9.0", True, ""),
        ("NONE", "sm90", "8.9", False, 'or where it was built with hardware_compatibility = "ampere_plus" under [tensorrt]'),
        ("NONE", "sm75", "8.9", False, "`nemo-edge build` on this machine"),
        ("SAME_COMPUTE_CAPABILITY", "sm89", "8.9", True, ""),
        ("SAME_COMPUTE_CAPABILITY", "sm89", "8.6", False, '"ampere_plus"'),
        ("AMPERE_PLUS", "sm80", "12.0", True, ""),
        ("AMPERE_PLUS", "sm90", "8.0", True, ""),
        ("AMPERE_PLUS", "sm90", "7.5", False, "`nemo-edge build` on this machine"),
    ],
)
def test_the_gpu_of_tensorrt(level: str | None, built: str, here: str, runs: bool, remedy: str) -> None:
    found = fit(plans.standard_sidecar(hardware_compatibility=level, targets=(built,), built_on=None), TRT, here)
    assert found.runs is runs
    assert found.remedy.endswith(remedy) or remedy in found.remedy
    if not runs:
        wants = "sm80 and later" if level == "AMPERE_PLUS" else built
        assert found.reason == f"built for {wants}; this machine has sm{here.replace('.', '')}"


def test_version_and_gpu_are_said_together_and_one_build_mends_both() -> None:
    found = fit(plans.standard_sidecar(), {"tensorrt": "11.2.0.5"}, "8.9")
    assert found.reason == "built for TensorRT 11.4.0.106 and sm90; this machine has 11.2.0.5 and sm89"
    assert found.remedy == "`nemo-edge build` on this machine"
    found = fit(plans.sidecar(targets=("sm86",)), {"tensorrt-rtx-cu13": "1.8.0.5"}, "8.9")
    assert found.reason == "built for TensorRT-RTX 1.7.1.116 and sm86; this machine has 1.8.0.5 and sm89"
    assert found.remedy == 'set targets = ["sm86", "sm89"] under [tensorrt_rtx] of the recipe and `nemo-edge build` on this machine'


def test_another_model_of_the_same_capability_runs_with_a_warning() -> None:
    plan = plans.standard_sidecar(targets=("sm86",), built_on="NVIDIA A10")
    found = check_here(plan, header_of(plan), [gpu("8.6", "NVIDIA RTX 3090")], TRT, "Linux")
    assert (found.runs, found.remedy) == (True, "time it, or `nemo-edge build` on this machine")
    assert found.reason.endswith("NVIDIA RTX 3090 (sm86); built on NVIDIA A10, and may be slower on another model")
    assert check_here(plan, header_of(plan), [gpu("8.6", "NVIDIA A10")], TRT, "Linux").remedy == ""


def test_no_gpu_and_no_package_are_both_said() -> None:
    found = fit(plans.sidecar(), {"tensorrt": "11.4.0.106", "tensorrt-rtx-cu13-bindings": "1.7.1.116"})
    assert found.reason == (
        "built for TensorRT-RTX 1.7.1.116 and sm80, sm86, sm89, sm120 and later; "
        "this machine has no TensorRT-RTX and no NVIDIA GPU with a driver"
    )
    assert found.remedy == (
        "`pip install 'tensorrt-rtx-cu13==1.7.1.116'`, and run it where there is one (in a container: docker run --gpus all)"
    )
    assert fit(plans.standard_sidecar(), RTX, "9.0").reason == "built for TensorRT 11.4.0.106; this machine has no TensorRT"


def test_another_operating_system() -> None:
    found = fit(plans.standard_sidecar(), TRT, "9.0", system="Windows")
    assert found.reason == "built for Linux; this machine has Windows"
    assert found.remedy == "`nemo-edge build` on this machine"
    assert fit(plans.sidecar(), RTX, "8.6", system="Darwin").remedy == "run it on Linux and Windows"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"flavour": "tensorrt", "targets": None}, "it is of TensorRT 1.7.1.116, not TensorRT-RTX 1.7.1.116"),
        ({"version": "1.7.0.116"}, "it is of TensorRT-RTX 1.7.0.116, not TensorRT-RTX 1.7.1.116"),
        ({"size_bytes": 4095}, "it has 4095 bytes, not 4096"),
        ({"targets": ("sm86",)}, "it is for sm86, not sm80, sm86, sm89, sm120 and later"),
    ],
)
def test_a_plan_that_its_sidecar_does_not_describe(changes: dict[str, Any], reason: str) -> None:
    found = fit(plans.sidecar(), RTX, "8.6", **changes)
    assert (found.runs, found.reason) == (False, f"the plan is not the one that its sidecar describes: {reason}")
    assert found.remedy.startswith("fetch it again")


def test_a_header_has_one_byte_for_the_build_number() -> None:
    assert fit(plans.standard_sidecar(version="10.0.1.300"), {"tensorrt": "10.0.1.300"}, "9.0", version="10.0.1.44").runs


def test_a_plan_alone_is_judged_by_its_header() -> None:
    rtx = header_of(plans.sidecar(targets=("sm86",)))
    assert check_here(None, rtx, [gpu("8.6")], RTX, "Linux").runs
    assert check_here(None, rtx, [gpu("8.9")], RTX, "Linux").reason == "built for sm86; this machine has sm89"
    standard = header_of(plans.standard_sidecar())
    found = check_here(None, standard, [gpu("9.0")], TRT, "Linux")
    assert (found.runs, found.remedy) == (None, "fetch its sidecar, the .json of the same name, too")
    assert check_here(None, standard, [], TRT, "Linux").runs is False
    assert check_here(None, standard, [gpu("9.0")], {"tensorrt": "11.2.0.5"}, "Linux").runs is False


def test_a_machine_of_which_little_is_known_is_not_condemned() -> None:
    assert fit(plans.standard_sidecar(), {"tensorrt": "unknown"}, "9.0").runs
    assert gpus_of("tensorrt", ()) == "an unnamed GPU"
    assert fit(plans.sidecar(targets=("sm86",)), RTX, "[N/A]").runs is False
