"""A machine that cannot run a bundle's engines is told in one line, before anything is opened."""

from __future__ import annotations

from pathlib import Path

import plans
import pytest

from nemo_edge.backends.readiness import check_plans
from nemo_edge.backends.tensorrt import flavours
from nemo_edge.system.environment import Gpu
from nemo_edge.system.errors import BundleError, InputError, MissingDependency

PLACES = ("text_encoder", "unet")


def gpu(capability: str) -> Gpu:
    return Gpu(name=f"NVIDIA {capability}", driver="580.95", memory_mib=24000, compute_capability=capability)


def with_machine(patch: pytest.MonkeyPatch, *capabilities: str, **versions: str) -> None:
    """A machine of these GPUs, in CUDA's order, and packages; what is compared is ours, only what is looked at is not there."""
    found = tuple(map(gpu, capabilities))
    patch.setattr(flavours, "gpus", lambda: found)
    patch.setattr(flavours, "_torch_sees_gpu", lambda: bool(found))
    patch.setattr(flavours, "_device_0", lambda: (found[0].compute_capability, found[0].name))
    patch.setattr(flavours, "installed", lambda: {name.replace("_", "-"): version for name, version in versions.items()})


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "engines").mkdir()
    for place in PLACES:
        name = f"engines/{place}.tensorrt.sm90.plan"
        plans.write(tmp_path, plans.standard(), plans.standard_sidecar(component=place, plan=name), name)
    return tmp_path


def test_engines_for_this_gpu_and_version_are_let_pass(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_machine(monkeypatch, "9.0", tensorrt="11.4.0.106")
    check_plans(bundle, PLACES, "tensorrt")


@pytest.mark.parametrize(
    ("capabilities", "version", "reason"),
    [
        ((), "11.4.0.106", "built for sm90; this machine has no NVIDIA GPU with a driver: run it where there is one"),
        (("8.6",), "11.4.0.106", "built for sm90; this machine has sm86: `nemo-edge build` on this machine"),
        (("9.0",), "11.3.0.1", "built for TensorRT 11.4.0.106; this machine has 11.3.0.1: `pip install 'tensorrt==11.4.0.106'"),
        (("8.6", "9.0"), "11.4.0.106", "built for sm90; this machine has sm86"),
    ],
)
def test_another_machine_is_told_what_they_were_built_for(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capabilities: tuple[str, ...], version: str, reason: str
) -> None:
    """Engines are opened on the first GPU, so another does not help."""
    with_machine(monkeypatch, *capabilities, tensorrt=version)
    with pytest.raises(MissingDependency) as refused:
        check_plans(bundle, PLACES, "tensorrt")
    assert str(refused.value).startswith(f"the TensorRT engine of text_encoder in {bundle}: {reason}")


def test_one_of_several_engines_of_a_component_is_enough(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_machine(monkeypatch, "8.6", tensorrt="11.4.0.106")
    for place in PLACES:
        name = f"engines/{place}.tensorrt.sm86.plan"
        plans.write(bundle, plans.standard(), plans.standard_sidecar(component=place, plan=name, targets=("sm86",)), name)
    check_plans(bundle, PLACES, "tensorrt")


def test_a_component_without_an_engine_comes_before_the_machine(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_machine(monkeypatch)
    with pytest.raises(InputError, match=r"has no TensorRT engine of vae_decoder: build it with \[tensorrt\] in the recipe"):
        check_plans(bundle, (*PLACES, "vae_decoder"), "tensorrt")
    (bundle / "engines" / "unet.tensorrt.sm90.json").write_text("{}")
    with pytest.raises(BundleError, match="does not describe a plan"):
        check_plans(bundle, PLACES, "tensorrt")
