"""Probes try what they speak of: the backends of this machine, and packages, compilers and libraries that are broken on purpose."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nemo_edge.backends import probes
from nemo_edge.backends.onnxruntime import available
from nemo_edge.backends.probes import Probe, import_problems, probe_all, runtime_links
from nemo_edge.system.compatibility import installed
from nemo_edge.system.environment import Gpu

H100 = Gpu(name="NVIDIA H100", driver="580.95.05", memory_mib=81559, compute_capability="9.0")
RTX = Gpu(name="NVIDIA RTX 4090", driver="580.95.05", memory_mib=24564, compute_capability="8.9")
BLACKWELL = Gpu(name="NVIDIA RTX 5090", driver="580.95.05", memory_mib=32607, compute_capability="12.0")


def probed(*gpus: Gpu) -> dict[str, Probe]:
    return {probe.name: probe for probe in probe_all(gpus, installed())}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a package of one file in front of all others."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()

    return write


def test_each_backend_has_an_answer_and_what_does_not_run_a_reason() -> None:
    found = probed()
    assert list(found) == [
        *("torch cpu", "torch cuda", "torch compile", "onnxruntime cpu", "onnxruntime cuda", "onnxruntime tensorrt"),
        *("tensorrt", "tensorrt-rtx", "openvino", "triton client"),
    ]
    for probe in found.values():
        assert "\n" not in probe.reason
        if not probe.runs:
            assert probe.reason, probe
            assert probe.remedy, probe


def test_what_build_needs_runs_here() -> None:
    found = probed()
    assert found["torch cpu"].runs
    assert (found["onnxruntime cpu"].compiles, found["onnxruntime cpu"].runs) == (True, True)
    assert found["torch cpu"].version == torch.__version__.partition("+")[0]
    assert found["torch cuda"].runs == torch.cuda.is_available()
    assert import_problems(installed()) == ()


def test_what_a_build_does_not_use_is_said() -> None:
    assert {probe.backend for probe in probed().values() if not probe.used_by_build} == {"triton"}


def test_a_gpu_that_no_driver_serves_is_told_from_a_missing_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    without, beside = probed(), probed(RTX)
    assert without["torch cuda"].reason == "no NVIDIA GPU with a driver here"
    assert "pip cannot install" in without["torch cuda"].remedy
    assert beside["torch cuda"].reason == "cannot load libcuda.so.1"
    if "cuda" in available():
        assert beside["onnxruntime cuda"].reason.startswith("cannot load ")
        assert beside["onnxruntime tensorrt"].reason.startswith("cannot load ")


def test_the_libraries_of_onnx_runtime_are_read() -> None:
    links = runtime_links()
    assert set(links.missing) == {"cuda", "tensorrt"}
    if "tensorrt" in available() and sys.platform == "linux":
        assert links.tensorrt is not None
        assert links.tensorrt >= 10


def test_the_remedy_is_that_of_what_is_missing() -> None:
    assert "docker run --gpus all" in probes._library_remedy(["libcuda.so.1", "libcudnn.so.9"], 10)
    assert probes._library_remedy(["libcudnn.so.9"], 10) == "pip install 'onnxruntime-gpu[cuda,cudnn]'"
    assert probes._library_remedy(["libnvinfer.so.10"], 10) == "pip install 'tensorrt-cu13==10.*' --extra-index-url https://pypi.nvidia.com"


def test_libraries_of_a_wheel_that_the_loader_does_not_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt_libs").mkdir()
    for name in ("__init__.py", "libnvinfer.so.10"):
        (tmp_path / "tensorrt_libs" / name).touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert probes._library_remedy(["libnvinfer.so.10"], 10) == f"export LD_LIBRARY_PATH={tmp_path}/tensorrt_libs:$LD_LIBRARY_PATH"


def test_a_package_that_breaks_at_import_is_an_answer(package: Callable[[str, str], None]) -> None:
    package("openvino", "raise ImportError('libopenvino.so.2640: cannot open shared object file\\nmore')")
    found = probed()["openvino"]
    assert (found.compiles, found.runs) == (False, False)
    assert found.reason == "cannot be imported: libopenvino.so.2640: cannot open shared object file"
    assert found.remedy == "pip install --force-reinstall 'nemo-edge[openvino]'"


def test_a_needed_package_that_breaks_at_import_breaks_the_build(package: Callable[[str, str], None]) -> None:
    package("onnxscript", "raise RuntimeError('needs another onnx')")
    (problem,) = import_problems(installed())
    assert problem.what == "onnxscript cannot be imported: needs another onnx"
    assert problem.breaks_build


def test_the_package_to_reinstall_is_the_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert [p.remedy for p in import_problems({"onnxruntime-gpu": "1.31.1"})] == ["pip install --force-reinstall onnxruntime-gpu"]
    assert [p.remedy for p in import_problems({"onnxruntime": "1.32.0"})] == ["pip install --force-reinstall onnxruntime"]


def test_enterprise_tensorrt_builds_on_its_gpu(package: Callable[[str, str], None]) -> None:
    package("tensorrt", "")
    found = probed()["tensorrt"]
    assert (found.compiles, found.runs) == (False, False)
    assert found.reason == "no NVIDIA GPU with a driver here: it builds on the GPU it is for"


def test_torch_compile_wants_a_compiler_that_finds_python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = probed()["torch compile"]
    assert (found.runs, found.reason) == (False, "no C++ compiler (no-such-compiler)")
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho 'fatal error: Python.h: No such file or directory' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    found = probed()["torch compile"]
    assert found.reason.endswith("finds no Python.h")
    assert found.remedy == f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-dev"


def test_torch_compile_runs_the_compiler_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    if shutil.which("g++") is None:
        pytest.skip("this machine has no g++")
    assert probed()["torch compile"].compiles


def test_tensorrt_rtx_compiles_without_a_gpu_and_leaves_hopper_out() -> None:
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt-rtx is not installed: pip install 'nemo-edge[rtx]'")
    none, hopper, both = (probed(*gpus)["tensorrt-rtx"] for gpus in ((), (H100,), (H100, RTX)))
    assert (none.compiles, none.runs) == (True, False)
    assert (hopper.compiles, hopper.runs, both.runs) == (True, False, True)
    assert hopper.reason == both.reason == "does not target NVIDIA H100 (compute capability 9.0)"
    assert probed(BLACKWELL)["tensorrt-rtx"].runs


@pytest.mark.parametrize(
    ("capability", "served"),
    [("7.0", False), ("7.5", True), ("8.0", True), ("8.7", False), ("9.0", False), ("10.0", False), ("12.1", True), ("[N/A]", False)],
)
def test_which_gpus_tensorrt_rtx_serves(capability: str, served: bool) -> None:
    assert probes._rtx_serves(capability) is served


def test_a_probe_leaves_the_standard_streams_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    with probes._silent():
        os.write(1, b"native noise")
        os.write(2, b"native noise")
    os.write(1, b"after")
    assert capfd.readouterr() == ("after", "")
