"""The table of the two products, and what is found out before a build."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nemo_edge.backends.tensorrt import flavours
from nemo_edge.backends.tensorrt.flavours import (
    FLAVOURS,
    builder_flags,
    check,
    check_runtime,
    first_gpu,
    load_product,
    product_version,
    runtime_settings,
    this_capability,
)
from nemo_edge.recipe.targets import TensorRtRtxSettings, TensorRtSettings
from nemo_edge.system.environment import Gpu
from nemo_edge.system.errors import InputError, MissingDependency

without_gpu = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is an NVIDIA driver")


def test_the_suffixes_are_those_of_each_product() -> None:
    assert {name: product.suffix for name, product in FLAVOURS.items()} == {"tensorrt": ".plan", "tensorrt-rtx": ".engine"}
    assert {product.flavour for product in FLAVOURS.values()} == set(FLAVOURS)


@without_gpu
def test_the_standard_product_is_refused_without_a_gpu() -> None:
    with pytest.raises(MissingDependency, match=r"nvidia-smi sees none here.*TensorRT-RTX .*, which compiles without one"):
        check("tensorrt", TensorRtSettings())
    assert this_capability() is None


@pytest.mark.parametrize(("flavour", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_a_package_that_is_not_installed_is_named_with_the_command(
    flavour: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(__import__("sys").modules, module, raising=False)
    with pytest.raises(MissingDependency, match=r"is not installed: pip install 'nemo-edge\["):
        load_product(flavour)  # type: ignore[arg-type]


def test_a_package_whose_libraries_do_not_load_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependency, match=r"cannot be imported \(libnvinfer.so.11.*\): pip install --force-reinstall"):
        load_product("tensorrt")


def test_the_rtx_product_passes_here() -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    check("tensorrt-rtx", TensorRtRtxSettings(targets=("sm75", "sm86")))
    assert product_version("tensorrt-rtx").count(".") >= 2


def test_a_target_that_this_version_does_not_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older version, as a module of its names."""
    (tmp_path / "tensorrt_rtx.py").write_text("__version__ = '1.1.1'\nclass ComputeCapability:\n    SM86 = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "tensorrt_rtx", raising=False)
    check("tensorrt-rtx", TensorRtRtxSettings(targets=("sm86",)))
    with pytest.raises(MissingDependency, match=r"TensorRT-RTX 1.1.1 has no ComputeCapability.SM121: pip install --upgrade"):
        check("tensorrt-rtx", TensorRtRtxSettings(targets=("sm86", "sm121")))
    monkeypatch.delitem(__import__("sys").modules, "tensorrt_rtx")


def test_settings_of_the_other_product_are_refused() -> None:
    with pytest.raises(InputError, match=r"table \[tensorrt_rtx\], not with TensorRtSettings"):
        check("tensorrt-rtx", TensorRtSettings())


def test_flags_follow_the_settings() -> None:
    assert builder_flags(TensorRtRtxSettings(), refit_values=True) == ()
    assert builder_flags(TensorRtSettings(), refit_values=True) == ()
    all_of_it = TensorRtSettings(refit="all", version_compatible=True, weight_streaming=True)
    assert builder_flags(all_of_it, refit_values=False) == ("REFIT", "VERSION_COMPATIBLE", "WEIGHT_STREAMING")
    values = TensorRtSettings(refit="value_weights")
    assert builder_flags(values, refit_values=True) == ("REFIT_INDIVIDUAL",)
    assert builder_flags(values, refit_values=False) == ()


def test_a_sidecar_records_the_settings_and_no_path_of_this_machine() -> None:
    assert runtime_settings(TensorRtRtxSettings(targets=("sm86",))) == {
        "cuda_graphs": True,
        "kernel_specialization": "lazy",
        "runtime_cache": True,
    }
    found = runtime_settings(TensorRtSettings(timing_cache=Path("/somewhere/times")))
    assert found["timing_cache"] is True
    assert found["refit"] == "none"


def gpu(name: str, capability: str) -> Gpu:
    return Gpu(name=name, driver="580.95", memory_mib=24000, compute_capability=capability)


@pytest.mark.parametrize(
    ("own", "name"),
    [
        (("9.0", "H100"), "H100"),
        (("8.9", "RTX 4090"), "RTX 4090"),
        (("9.0", "H100 MIG 1g.10gb"), "H100"),
        (None, "T4"),
    ],
)
def test_the_first_gpu_is_cuda_s_and_not_that_of_nvidia_smi(
    own: tuple[str, str] | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine of several GPUs; which of them CUDA takes is told in its place, and there is none to tell where it sees none."""
    monkeypatch.setattr(flavours, "gpus", lambda: (gpu("T4", "7.5"), gpu("L4", "8.9"), gpu("RTX 4090", "8.9"), gpu("H100", "9.0")))
    monkeypatch.setattr(flavours, "_device_0", lambda: own)
    found = first_gpu()
    assert found is not None
    assert found.name == name
    assert this_capability() == (f"sm{found.compute_capability.replace('.', '')}", name)


def test_pytorch_is_not_asked_where_the_gpus_are_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavours, "_device_0", lambda: pytest.fail("asked"))
    for found in ((), (gpu("L4", "8.9"),), (gpu("L4", "8.9"), gpu("L4", "8.9"))):
        monkeypatch.setattr(flavours, "gpus", lambda found=found: found)
        assert first_gpu() == (found[0] if found else None)


@without_gpu
def test_a_gpu_that_pytorch_does_not_see_runs_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is the one at hand, for which there is none."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    monkeypatch.setattr(flavours, "gpus", lambda: (gpu("L4", "8.9"), gpu("T4", "7.5")))
    assert this_capability() == ("sm89", "L4")
    with pytest.raises(MissingDependency, match=r"PyTorch, which does not see the L4 that nvidia-smi sees: update the driver"):
        check_runtime("tensorrt-rtx")
