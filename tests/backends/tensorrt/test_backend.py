"""Bundles get plans with sidecars, from ONNX files that TensorRT-RTX compiles without a GPU."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from backends.tensorrt.plan_graphs import save_attention_graph, shapes
from nemo_edge.backends.tensorrt.backend import available, compile_engine, describe, find_plan, open_engine
from nemo_edge.backends.tensorrt.flavours import fit_here
from nemo_edge.backends.tensorrt.plans import PlanFile, open_plan_file
from nemo_edge.backends.tensorrt.profiles import plan_profiles
from nemo_edge.export._component import export_component
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import ExportSettings
from nemo_edge.recipe.targets import Flavour, ProfileSettings, TensorRtRtxSettings, TensorRtSettings
from nemo_edge.system.environment import gpus
from nemo_edge.system.errors import BundleError, InputError, MissingDependency

MODEL = "unet/model.onnx"
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed: pip install 'nemo-edge[rtx]'"
)
without_gpu = pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is an NVIDIA driver")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    save_attention_graph(tmp_path / MODEL)
    return tmp_path


def compile_toy(bundle: Path, *targets: str, profiles: Any = None, dtype: Any = "fp16") -> PlanFile:
    settings = TensorRtRtxSettings(targets=targets)
    return compile_engine(bundle, "unet", MODEL, "tensorrt-rtx", settings, profiles or (shapes(),), dtype)


@rtx
def test_one_plan_is_for_all_its_targets_and_its_sidecar_says_what_it_is(bundle: Path) -> None:
    plan = compile_toy(bundle, "sm89", "sm86")
    path = bundle / "engines" / "unet.tensorrt-rtx.sm86+sm89.engine"
    assert plan == open_plan_file(path.with_suffix(".json"))
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, path.with_suffix(".json").name]
    assert (plan.plan, plan.size_bytes) == (f"engines/{path.name}", path.stat().st_size)
    assert plan.targets == ("sm86", "sm89")
    assert plan.graph_hash == open_graph(bundle / MODEL).content_hash()
    assert (plan.component, plan.backend, plan.model, plan.dtype) == ("unet", "tensorrt-rtx", MODEL, "fp16")
    assert plan.inputs["sample"].model_dump() == {"dtype": "float16", "dims": ("batch", 4, "height", "width")}
    assert plan.outputs["out_sample"].dims == ("batch", 4, "height", "width")
    assert plan.profiles == (shapes(),)
    assert plan.flags == ("TF32",)
    assert plan.settings["decomposable_attentions"] == 1
    assert (plan.built_on, plan.reproducible, plan.system) == (None, False, "Linux and Windows")
    assert plan.version.startswith(describe("tensorrt-rtx")["version"])


@rtx
def test_without_targets_the_plan_is_portable(bundle: Path) -> None:
    plan = compile_toy(bundle)
    assert plan.targets == ()
    assert plan.plan == "engines/unet.tensorrt-rtx.portable.engine"


@rtx
def test_turing_has_to_be_asked_for(bundle: Path) -> None:
    assert compile_toy(bundle, "sm75").targets == ("sm75",)


@rtx
def test_fp32_is_compiled_without_tf32(tmp_path: Path) -> None:
    save_attention_graph(tmp_path / MODEL, "fp32")
    plan = compile_toy(tmp_path, "sm86", dtype="fp32")
    assert plan.flags == ()
    assert plan.inputs["sample"].dtype == "float32"


@rtx
def test_bf16_is_compiled_with_float32_borders(tmp_path: Path) -> None:
    save_attention_graph(tmp_path / MODEL, "bf16")
    plan = compile_toy(tmp_path, "sm86", "sm89", dtype="bf16")
    assert (plan.dtype, plan.targets) == ("bf16", ("sm86", "sm89"))
    assert {tensor.dtype for tensor in (*plan.inputs.values(), *plan.outputs.values())} == {"float32"}


@rtx
def test_pinned_sizes_and_several_profiles_compile(tmp_path: Path) -> None:
    save_attention_graph(tmp_path / MODEL, dims=(2, 4, 8, 8))
    plan = compile_toy(tmp_path, "sm86", profiles=(shapes((2, 2, 2), (8, 8, 8)),))
    assert plan.inputs["sample"].dims == (2, 4, 8, 8)
    save_attention_graph(tmp_path / MODEL)
    two = (shapes((1, 2, 2), (8, 8, 8)), shapes((2, 8, 8), (8, 16, 16)))
    assert compile_toy(tmp_path, "sm86", profiles=two).profiles == two


BUILD_AGAIN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from nemo_edge.backends.tensorrt.backend import compile_engine
from nemo_edge.recipe.targets import TensorRtRtxSettings
from plan_graphs import shapes
if __name__ == "__main__":
    compile_engine(Path(sys.argv[1]), "unet", "unet/model.onnx", "tensorrt-rtx", TensorRtRtxSettings(targets=("sm86",)), [shapes()], "fp16")
"""


@rtx
def test_the_same_graph_gives_the_same_bytes_in_another_process(bundle: Path, tmp_path: Path) -> None:
    plan = compile_toy(bundle, "sm86")
    first = hashlib.sha256((bundle / plan.plan).read_bytes()).hexdigest()
    script = tmp_path / "again.py"
    script.write_text(BUILD_AGAIN)
    subprocess.run([sys.executable, str(script), str(bundle), str(Path(__file__).parent)], check=True)
    assert hashlib.sha256((bundle / plan.plan).read_bytes()).hexdigest() == first


@rtx
def test_missing_and_short_weights_are_refused_before_the_build(bundle: Path) -> None:
    weights = bundle / "unet" / "model.onnx.data"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    with pytest.raises(InputError, match=rf"model.onnx.data has 1000 bytes, but .*model.onnx reads {len(whole)} of it: export it again"):
        compile_toy(bundle, "sm86")
    weights.unlink()
    with pytest.raises(InputError, match=r"model.onnx.data, the weights of .*, does not exist: export it again"):
        compile_toy(bundle, "sm86")
    assert not (bundle / "engines").exists()


@rtx
def test_a_file_that_is_no_onnx_is_refused(written: Any, tmp_path: Path) -> None:
    written(MODEL, "hello\n")
    with pytest.raises(InputError, match=r"model.onnx is not an ONNX file"):
        compile_toy(tmp_path, "sm86")


@rtx
def test_a_failed_build_leaves_the_former_plan_as_it_was(bundle: Path) -> None:
    plan = compile_toy(bundle, "sm86")
    before = (bundle / plan.plan).read_bytes()
    with pytest.raises(InputError, match="the profile says nothing"):
        compile_toy(bundle, "sm86", profiles=({"sample": shapes()["sample"]},))
    assert (bundle / plan.plan).read_bytes() == before
    assert open_plan_file(bundle / "engines" / "unet.tensorrt-rtx.sm86.json") == plan
    assert len(list((bundle / "engines").iterdir())) == 2


@rtx
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_the_callers_error(bundle: Path) -> None:
    bundle.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        compile_toy(bundle, "sm86")


@without_gpu
def test_the_standard_product_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match=r"nvidia-smi sees none here"):
        compile_engine(tmp_path, "unet", "is/not/there.onnx", "tensorrt", TensorRtSettings(), (), "fp16")
    assert list(tmp_path.iterdir()) == []


@without_gpu
@rtx
def test_no_engine_is_opened_without_a_gpu(bundle: Path) -> None:
    compile_toy(bundle, "sm86")
    with pytest.raises(MissingDependency, match=r"TensorRT-RTX runs on an NVIDIA GPU, and nvidia-smi sees none here"):
        open_engine(bundle, "unet", "tensorrt-rtx")


def sidecar(bundle: Path, *targets: str, flavour: Flavour = "tensorrt-rtx", level: str | None = None) -> None:
    plan = PlanFile(
        component="unet",
        backend=flavour,
        version="1",
        plan="p",
        size_bytes=1,
        model=MODEL,
        graph_hash="h",
        targets=targets,
        hardware_compatibility=level,
        system="Linux",
        dtype="fp16",
        inputs={},
        outputs={},
        profiles=(),
        flags=(),
        settings={},
        reproducible=True,
        build_s=1,
    )
    (bundle / "engines").mkdir(exist_ok=True)
    (bundle / "engines" / f"unet.{flavour}.{'+'.join(targets) or 'portable'}.json").write_text(plan.model_dump_json())


def test_the_plan_for_the_gpu_at_hand_is_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no TensorRT-RTX engine of unet: build it with \[tensorrt_rtx\]"):
        find_plan(tmp_path, "unet", "tensorrt-rtx")
    sidecar(tmp_path, "sm86", "sm89")
    assert find_plan(tmp_path, "unet", "tensorrt-rtx", "sm89").targets == ("sm86", "sm89")
    assert find_plan(tmp_path, "unet", "tensorrt-rtx").targets == ("sm86", "sm89")
    with pytest.raises(InputError, match=r"is for sm86\+sm89, this GPU is sm120: build one for it, in the recipe's \[tensorrt_rtx\]"):
        find_plan(tmp_path, "unet", "tensorrt-rtx", "sm120")
    sidecar(tmp_path)
    assert find_plan(tmp_path, "unet", "tensorrt-rtx", "sm120").targets == ()
    assert find_plan(tmp_path, "unet", "tensorrt-rtx", "sm86").targets == ("sm86", "sm89")


def test_a_plan_of_the_standard_product_runs_elsewhere_only_where_it_was_built_for_it(tmp_path: Path) -> None:
    sidecar(tmp_path, "sm86", flavour="tensorrt", level="NONE")
    with pytest.raises(InputError, match=r"this GPU is sm90"):
        find_plan(tmp_path, "unet", "tensorrt", "sm90")
    sidecar(tmp_path, "sm86", flavour="tensorrt", level="AMPERE_PLUS")
    assert find_plan(tmp_path, "unet", "tensorrt", "sm90").targets == ("sm86",)


def test_a_foreign_sidecar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "unet.tensorrt-rtx.sm86.json").write_text(json.dumps({"plan": "x"}))
    with pytest.raises(BundleError, match="does not describe a plan"):
        find_plan(tmp_path, "unet", "tensorrt-rtx", "sm86")


def test_what_is_installed_is_available() -> None:
    assert set(available()) <= set(get_args(Flavour))
    assert ("tensorrt-rtx" in available()) == (importlib.util.find_spec("tensorrt_rtx") is not None)


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("flavour", get_args(Flavour))
def test_an_engine_runs_as_onnx_runtime_does(bundle: Path, flavour: Flavour) -> None:
    """Several shapes one after the other, each twice: recorded, and replayed."""
    from nemo_edge.backends.onnxruntime import open_runner

    if flavour not in available():
        pytest.skip(f"{flavour} is not installed")
    settings = {"tensorrt": TensorRtSettings(), "tensorrt-rtx": TensorRtRtxSettings()}[flavour]
    two = (shapes((1, 2, 2), (8, 8, 8)), shapes((2, 8, 8), (8, 16, 16)))
    built = compile_engine(bundle, "unet", MODEL, flavour, settings, two, "fp16")
    fit = fit_here(bundle, built)
    if not fit.runs:
        pytest.skip(fit.reason)
    rng = np.random.default_rng(0)
    with open_engine(bundle, "unet", flavour) as engine, open_runner(bundle / MODEL) as reference:
        for rows, size in ((2, 8), (2, 8), (8, 16), (8, 16), (2, 8)):
            feed = {
                "sample": rng.standard_normal((rows, 4, size, size), np.float32),
                "states": rng.standard_normal((rows, 8, 32), np.float32),
                "value_mask": np.ones((rows, 32), np.float32),
            }
            got, expected = engine(feed)["out_sample"], reference(feed)["out_sample"]
            assert got.dtype == np.float32
            assert np.abs(got - expected).max() < 2e-2 * np.abs(expected).max()
        many = {name: np.concatenate([array] * 10) for name, array in feed.items()}  # 20 rows, of 8 at the most at once
        assert np.abs(engine(many)["out_sample"] - np.concatenate([expected] * 10)).max() < 2e-2 * np.abs(expected).max()
        with pytest.raises(InputError, match="of 256 × 256 pixels"):
            engine(feed | {"sample": np.zeros((2, 4, 32, 32), np.float32)})
    with pytest.raises(InputError, match="this runner is closed"):
        engine(feed)


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_the_value_weights_of_an_engine_are_marked(toy: Checkpoint, tmp_path: Path) -> None:
    export_component(toy.unet_component(), tmp_path / "unet", ExportSettings(dtype="fp16"), {}, toy.config.factor)
    layers = value_layers(toy.unet)
    NeuronSet.empty(layers).save(tmp_path / "neurons.json")
    if "tensorrt" not in available():
        pytest.skip("tensorrt is not installed")
    inputs, _ = open_graph(tmp_path / MODEL).ports()
    found = plan_profiles("unet", {name: port.dims for name, port in inputs.items()}, (ProfileSettings(),), toy.config)
    plan = compile_engine(tmp_path, "unet", MODEL, "tensorrt", TensorRtSettings(refit="value_weights"), found, "fp16")
    assert len(plan.refittable) == len(layers)
    assert "REFIT_INDIVIDUAL" in plan.flags
