"""Versions that do not fit together, from tables of versions; and that this very environment has none of the worst."""

from __future__ import annotations

import pytest

from nemo_edge.system.compatibility import installed, old_driver, overwritten, requirements_of, two_cudas, unfit_tensorrt, unmet

OURS = (
    "torch>=2.10",
    'onnxruntime-gpu>=1.24; platform_system != "none"',
    'onnxruntime>=1.24; platform_system == "none"',
    'openvino>=2025.4; extra == "openvino"',
    'tritonclient[all]>=2.60; extra == "serve"',
)


def test_what_is_met_is_no_problem() -> None:
    assert unmet("nemo-edge", OURS, {"torch": "2.14.1+cu130", "onnxruntime-gpu": "1.31.1"}) == ()


def test_too_old_and_missing_packages_are_told_with_the_command() -> None:
    old, missing = unmet("nemo-edge", OURS, {"torch": "2.9.0"}, breaks_build=True)
    assert (old.what, old.why, old.remedy) == ("torch 2.9.0 is installed", "nemo-edge needs torch>=2.10", "pip install 'torch>=2.10'")
    assert missing.what == "onnxruntime-gpu is not installed"
    assert old.breaks_build
    assert missing.breaks_build


def test_an_extra_that_is_too_old_breaks_nothing() -> None:
    (problem,) = unmet("nemo-edge", OURS, {"torch": "2.10", "onnxruntime-gpu": "1.24", "openvino": "2024.1"}, breaks_build=True)
    assert problem.what == "openvino 2024.1 is installed"
    assert not problem.breaks_build


def test_an_upper_bound_and_a_development_version() -> None:
    assert [p.what for p in unmet("transformers", ["tokenizers<0.24,>=0.23"], {"tokenizers": "0.24.0"})] == [
        "tokenizers 0.24.0 is installed"
    ]
    assert unmet("nemo-edge", ["torch>=2.10"], {"torch": "2.15.0.dev20261101"}) == ()


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"onnxruntime": "1.31.1"}, None),
        ({"onnxruntime-gpu": "1.31.1"}, None),
        (
            {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.31.1"},
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'",
        ),
        ({"onnxruntime": "1.32.0", "onnxruntime-openvino": "1.24"}, "pip install 'onnxruntime'"),
    ],
)
def test_two_packages_of_onnx_runtime_overwrite_each_other(versions: dict[str, str], said: str | None) -> None:
    found = overwritten(versions)
    assert (said in found[0].remedy) if said else found == ()


@pytest.mark.parametrize(
    ("tensorrt", "runtime", "linked", "remedy"),
    [
        ("11.4.0.106", "1.31.1", 10, "pip install 'tensorrt-cu13==10.*' --extra-index-url https://pypi.nvidia.com"),
        ("10.16.1.11", "1.31.1", 10, None),
        ("10.16.1.11", "1.33.0", 11, "pip install 'tensorrt-cu13==11.*' --extra-index-url https://pypi.nvidia.com"),
        ("11.4.0.106", "1.26.0", None, "pip install 'onnxruntime-gpu>=1.27', or 'tensorrt-cu13==10.*'"),
        ("11.4.0.106", "1.27.0", None, None),
    ],
)
def test_tensorrt_is_the_one_that_onnx_runtime_is_linked_with(tensorrt: str, runtime: str, linked: int | None, remedy: str | None) -> None:
    found = unfit_tensorrt({"tensorrt": tensorrt, "onnxruntime-gpu": runtime}, linked)
    assert found[0].remedy.startswith(remedy) if remedy else found == ()


def test_without_either_of_them_there_is_nothing_to_compare() -> None:
    assert unfit_tensorrt({"tensorrt": "11.4.0.106"}, 10) == ()
    assert unfit_tensorrt({"onnxruntime-gpu": "1.31.1"}, 10) == ()


@pytest.mark.parametrize(
    ("torch", "runtime", "wanted"),
    [("13.0", "13.1", None), (None, "13.0", None), ("12.8", "13.0", "onnxruntime-gpu<1.27"), ("13.0", "12.8", "onnxruntime-gpu>=1.27")],
)
def test_torch_and_onnx_runtime_are_of_one_cuda(torch: str | None, runtime: str | None, wanted: str | None) -> None:
    found = two_cudas(torch, runtime)
    assert (wanted in found[0].remedy) if wanted else found == ()


@pytest.mark.parametrize(
    ("driver", "cuda", "old"),
    [
        ("580.65.06", "13.0", False),
        ("575.57.08", "13.0", True),
        ("550.54.14", "12.8", False),
        ("470.82.01", "12.8", True),
        ("575.57.08", None, False),
        ("[N/A]", "13.0", False),
        ("575.57.08", "14.0", False),  # of which nothing is known
    ],
)
def test_a_driver_is_new_enough_for_the_cuda(driver: str, cuda: str | None, old: bool) -> None:
    assert bool(old_driver([driver, driver], cuda)) is old


def test_a_driver_of_several_gpus_is_told_once() -> None:
    (problem,) = old_driver(["550.1", "550.1"], "13.0")
    assert problem.why == "torch is built for CUDA 13.0, which needs driver 580 or newer"
    assert "pip cannot" in problem.remedy


def test_the_installed_packages_are_seen() -> None:
    assert {"torch", "huggingface-hub", "nemo-edge"} <= set(installed())
    assert any(r.startswith("torch") for r in requirements_of("nemo-edge"))
    assert requirements_of("no-such-package") == ()
