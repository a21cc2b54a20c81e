"""Clients that are not ours take what we write as it is: optimum-onnx, Polygraphy's tools, ONNX Runtime's own timing tool."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import onnx
import pytest

from nemo_edge.backends.onnxruntime import open_runner
from nemo_edge.bundle.manifest import verify
from nemo_edge.export._component import export_component
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.model.configuration import Configuration
from nemo_edge.recipe.settings import ExportSettings, SamplingSettings
from nemo_edge.sampling.loop import Pipeline, generate
from nemo_edge.sampling.noise import initial_noise

COMPONENTS = ("text_encoder", "unet", "unet_masked", "vae_decoder")
SIZES = {"batch": 2, "height": 16, "width": 16}
PROMPTS = ("a red pig", "a dog")
SEEDS = (0, 1)
OPTIMUM = Path(__file__).parents[2] / ".venv-optimum" / "bin" / "python"
needs_optimum = pytest.mark.skipif(not OPTIMUM.is_file(), reason="optimum-onnx needs an environment of its own: make optimum")


def run(command: Sequence[str | Path], folder: Path) -> str:
    """Run a command in a folder of its own and return what it printed. Fails with that unless the command succeeds."""
    done = subprocess.run([str(part) for part in command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def tool(name: str) -> Path:
    """An executable of the environment that runs the tests."""
    return Path(sys.executable).with_name(name)


def graph(model: Path) -> onnx.GraphProto:
    return onnx.load(str(model), load_external_data=False).graph


def input_shapes(model: Path) -> list[str]:
    """Polygraphy's `--input-shapes`: every input with its free dimensions filled in."""
    shapes = {port.name: [dim.dim_value or SIZES[dim.dim_param] for dim in port.type.tensor_type.shape.dim] for port in graph(model).input}
    return ["--input-shapes", *(f"{name}:{json.dumps(shape, separators=(',', ':'))}" for name, shape in shapes.items())]


def lint(model: Path, folder: Path) -> None:
    """Every node of the graph passes Polygraphy's lint, and it has nothing to say about any."""
    run([tool("polygraphy"), "check", "lint", model, "-o", folder / "lint.json", *input_shapes(model)], folder)
    report = json.loads((folder / "lint.json").read_text())
    assert report["lint_entries"] == []
    assert report["summary"]["failing"] == []
    assert set(report["summary"]["passing"]) == {node.name for node in graph(model).node}


def exported(checkpoint: Checkpoint, folder: Path, **settings: object) -> Path:
    """A checkpoint's graphs and configurations in a bundle's layout, nothing baked."""
    for component in checkpoint.components():
        export_component(component, folder / component.name, ExportSettings.model_validate(settings), {}, checkpoint.config.factor)
    checkpoint.config.save(folder, ["unet"])
    return folder


def own_pictures(folder: Path, settings: SamplingSettings) -> np.ndarray:
    config = Configuration.load(folder)
    texts = [folder / name / "model.onnx" for name in ("text_encoder", "text_encoder_2") if (folder / name).is_dir()]
    with ExitStack() as stack:
        *text, unet, vae = (
            stack.enter_context(open_runner(model)) for model in (*texts, *(folder / f"{n}/model.onnx" for n in ("unet", "vae_decoder")))
        )
        return generate(Pipeline(config, tuple(text), unet, vae), PROMPTS, SEEDS, settings)


def optimum_pictures(bundle: Path, settings: SamplingSettings, folder: Path) -> np.ndarray:
    np.save(folder / "noise.npy", initial_noise(SEEDS, Configuration.load(bundle).latent_shape))
    call = {"prompt": PROMPTS, "num_inference_steps": settings.steps, "guidance_scale": settings.guidance}
    job = {"folder": str(bundle), "noise": str(folder / "noise.npy"), "out": str(folder / "out.npy"), "call": call}
    run([OPTIMUM, "-I", Path(__file__).with_name("optimum_picture.py"), json.dumps(job)], folder)
    return np.asarray(np.load(folder / "out.npy"))


def assert_same_pictures(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype == np.uint8
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert np.abs(ours.astype(int) - theirs[::-1]).max() > 10  # the other prompt and noise: the pictures are no constant


@pytest.mark.optimum
@needs_optimum
def test_optimum_draws_a_bundle_s_pictures(tiny_bundle: Path, tmp_path: Path) -> None:
    settings = SamplingSettings(steps=5)
    assert_same_pictures(own_pictures(tiny_bundle, settings), optimum_pictures(tiny_bundle, settings, tmp_path))
    assert verify(tiny_bundle).passed


@pytest.mark.slow
@pytest.mark.optimum
@needs_optimum
def test_optimum_draws_the_pictures_of_stable_diffusion_xl(toy_sdxl: Checkpoint, tmp_path: Path) -> None:
    folder, settings = exported(toy_sdxl, tmp_path / "xl"), SamplingSettings(scheduler="euler", steps=5)
    assert_same_pictures(own_pictures(folder, settings), optimum_pictures(folder, settings, tmp_path))


@pytest.mark.parametrize("component", COMPONENTS)
def test_polygraphy_inspects_runs_and_lints_every_graph(tiny_bundle: Path, tmp_path: Path, component: str) -> None:
    model = tiny_bundle / component / "model.onnx"
    seen = run([tool("polygraphy"), "inspect", "model", model], tmp_path)
    assert all(f"{port.name} [dtype=" in seen for port in (*graph(model).input, *graph(model).output))
    assert "PASSED" in run([tool("polygraphy"), "run", model, "--onnxrt", "--validate", *input_shapes(model)], tmp_path)
    lint(model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"dtype": "fp16"}, {"opset": 18}], ids=["fp16", "opset18"])
def test_polygraphy_lints_other_types_and_opsets(tiny_recipe: Path, tmp_path: Path, settings: dict[str, object]) -> None:
    unet = open_checkpoint(str(tiny_recipe.parent / "model")).unet_component()
    export_component(unet, tmp_path / "unet", ExportSettings.model_validate(settings), {})
    lint(tmp_path / "unet" / "model.onnx", tmp_path)


@pytest.mark.parametrize("component", ["unet", "unet_masked", "vae_decoder"])
def test_onnx_runtime_s_own_tool_times_the_graphs(tiny_bundle: Path, tmp_path: Path, component: str) -> None:
    """`onnxruntime_test`, which ONNX Runtime's wheel installs; the compiled onnxruntime_perf_test is in no package."""
    sizes = ",".join(f"{name}={size}" for name, size in SIZES.items())
    seen = run([tool("onnxruntime_test"), tiny_bundle / component / "model.onnx", "3", "--symbolic_dims", sizes], tmp_path)
    latency = re.search(r"avg latency: ([\d.]+) ms", seen)
    assert latency, seen
    assert float(latency[1]) > 0


def test_no_weights_are_hard_links(tiny_bundle: Path) -> None:
    """onnx refuses external data of several links ("a potential hardlink attack"), and so does what loads with it."""
    weights = list(tiny_bundle.rglob("*.data"))
    assert len(weights) == len(COMPONENTS) + 1  # the value weights of the baked UNet have a file of their own
    assert {path.stat().st_nlink for path in weights} == {1}
