"""The machine: GPUs as a real `nvidia-smi` prints them, by a script in its place; everything else as this machine has it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_edge.system import environment
from nemo_edge.system.environment import Gpu, Machine, gpus, int8_products, machine, packages, packages_of

Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Put a `nvidia-smi` that prints `lines` in front of everything on the path."""

    def write(*lines: str, code: int = 0) -> None:
        tool = tmp_path / "bin" / "nvidia-smi"
        tool.parent.mkdir(exist_ok=True)
        text = "\n".join(lines)
        tool.write_text(f"#!/bin/sh\nprintf '%s\\n' \"$@\" > {tmp_path}/asked\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")

    return write


def test_gpus_are_read_from_nvidia_smi(smi: Smi, tmp_path: Path) -> None:
    smi(
        "NVIDIA H100 80GB HBM3, 580.95.05, 81559, 9.0, 345, 1980, 31, 0x0000000000000001",
        "NVIDIA GeForce RTX 4090, 580.95.05, 24564, 8.9, 2100, 3105, 83, 0x0000000000000024",
    )
    h100, rtx = gpus()
    assert h100 == Gpu(
        name="NVIDIA H100 80GB HBM3",
        driver="580.95.05",
        memory_mib=81559,
        compute_capability="9.0",
        clock_mhz=345,
        highest_clock_mhz=1980,
        temperature_c=31,
        throttled_by=("idle",),
    )
    assert rtx.throttled_by == ("software power cap", "software thermal slowdown")
    assert "--format=csv,noheader,nounits" in (tmp_path / "asked").read_text().splitlines()


def test_what_a_gpu_does_not_tell_is_left_out(smi: Smi) -> None:
    smi("NVIDIA A10G, 550.54.14, 23028, 8.6, [N/A], [N/A], [N/A], [N/A]")
    (gpu,) = gpus()
    assert (gpu.clock_mhz, gpu.highest_clock_mhz, gpu.temperature_c, gpu.throttled_by) == (None, None, None, ())


def test_a_driver_that_has_an_older_name_for_its_reasons_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    line = "Tesla T4, 470.82.01, 15109, 7.5, 300, 1590, 40, 0x0000000000000001"
    tool.write_text(f"#!/bin/sh\ncase \"$1\" in *clocks_event_reasons*) echo 'not a valid field'; exit 2;; esac\necho '{line}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (gpu,) = gpus()
    assert (gpu.driver, gpu.throttled_by) == ("470.82.01", ("idle",))


def test_a_driver_that_fails_is_no_gpu(smi: Smi) -> None:
    smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", code=9)
    assert gpus() == ()
    smi("No devices were found")
    assert gpus() == ()


def test_no_nvidia_smi_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus() == ()
    assert machine().gpus == ()


def test_the_machine_describes_itself(smi: Smi) -> None:
    smi("NVIDIA A10G, 550.54.14, 23028, 8.6, 210, 1710, 25, 0x1")
    here = machine()
    assert here.cores == len(os.sched_getaffinity(0))
    assert here.memory_gib > 0
    assert here.cpu
    assert "\n" not in here.cpu
    assert here.words == f"{here.cores} cores of {here.cpu}, NVIDIA A10G"
    assert Machine.model_validate_json(here.model_dump_json()) == here


def test_the_cpu_and_the_governor_are_what_linux_says() -> None:
    here, info = machine(), Path("/proc/cpuinfo")
    models = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.is_file() else []
    if models:
        assert models[0].endswith(here.cpu)
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    assert here.governor == (governor.read_text().strip() if governor.is_file() else None)


def test_versions_are_those_of_installed_packages() -> None:
    import torch

    assert packages()["torch"] == torch.__version__.partition("+")[0]
    assert "none" not in packages().values()


def test_packages_of_tensorrt_are_known_by_any_of_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"tensorrt_rtx_cu14": "2.0", "tensorrt_rtx_cu14_libs": "2.1", "tensorrt-cu15": "12.0", "tensorrt_lean": "12.1"}
    for name, number in names.items():
        folder = tmp_path / f"{name.replace('-', '_')}-{number}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = packages()
    assert (packages_of("tensorrt-rtx", found)["tensorrt-rtx-cu14"], packages_of("tensorrt", found)["tensorrt-cu15"]) == ("2.0", "12.0")
    assert not [name for name in found if name.endswith(("-libs", "-lean"))]


@pytest.mark.parametrize(
    ("told", "how"),
    [
        ("processor : 0\nflags\t\t: sse2 avx2 avx512f avx512_vnni\n", "fast"),
        ("flags : sse2 avx2 avx_vnni", "fast"),
        ("flags : sse2 avx2 avx512f avx512bw", "overflows"),
        ("processor\t: 0\nFeatures\t: fp asimd aes asimddp\n", "fast"),
        ("Features : fp asimd aes", "slow"),
        (None, None),
    ],
)
def test_how_products_of_8_bits_are_added_up_is_read_from_linux(told: str | None, how: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_text", lambda path: told if path == Path("/proc/cpuinfo") else None)
    assert int8_products() == how
