"""Where an engine's time goes: operators by module of the checkpoint, and the time beside what the machine can do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from backends.test_onnxruntime import save_integers

from nemo_edge.bundle.manifest import amend, open_bundle
from nemo_edge.measure.profile import Profile, _profiled, profile_engine
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system.errors import InputError

RUNTIMES = ["onnxruntime", "openvino"]


@pytest.fixture(params=RUNTIMES)
def bundle(request: pytest.FixtureRequest, tiny_bundle: Path, tmp_path: Path) -> Path:
    """The tiny bundle, whose recipe asks for a runtime."""
    pytest.importorskip(request.param)
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = open_bundle(folder)
    engine = {**manifest.recipe["engine"], "backend": request.param}
    amend(folder, manifest.model_copy(update={"recipe": {**manifest.recipe, "engine": engine}}), lambda _: {})
    return folder


def test_operators_are_named_by_the_modules_of_the_checkpoint(bundle: Path) -> None:
    found = profile_engine(bundle, runs=2, threads=1)
    assert [row.ms for row in found.rows] == sorted((row.ms for row in found.rows), reverse=True)
    assert sum(row.share for row in found.rows) == pytest.approx(1, abs=0.02)
    named = [row for row in found.rows if row.module]
    assert sum(row.share for row in named) > 0.2  # the others are what a runtime makes by itself: of a normalization ten operators
    assert any(row.module.startswith("down_blocks.0.") for row in named)
    assert any(row.operator.startswith(("Conv", "Fused")) and "conv" in row.module for row in named)
    assert found.shapes["sample"] == (2, 4, 16, 16)
    assert (found.component, found.backend, found.precision, found.threads) == ("unet", bundle_backend(bundle), "fp32", 1)


def bundle_backend(bundle: Path) -> str:
    return str(open_bundle(bundle).recipe["engine"]["backend"])


def test_the_time_stands_beside_the_machine_s_best(bundle: Path) -> None:
    found = profile_engine(bundle, runs=2, threads=1)
    assert found.gflops is not None
    assert found.limit_ms is not None
    assert found.rates.gflops > 1
    assert found.rates.gbytes > 0.1
    assert found.limit_ms == pytest.approx(found.rates.limit_ms(found.gflops * 1e9, found.weights_mb * 1e6), rel=0.05, abs=0.002)
    assert found.of_limit is not None
    assert 0 < found.of_limit < 1  # so small a UNet is mostly overhead
    assert Profile.model_validate_json(found.model_dump_json()) == found


def test_operations_are_those_of_the_module(tiny_bundle: Path) -> None:
    """The VAE's decoder twice as large in each direction has four times the operations of its convolutions, and more of its attention."""
    small, large = (profile_engine(tiny_bundle, "vae_decoder", runs=1, size=(side, side)) for side in (32, 64))
    assert small.gflops is not None
    assert large.gflops is not None
    assert 4 <= large.gflops / small.gflops < 16


def test_other_components_and_batches_are_profiled(tiny_bundle: Path) -> None:
    assert profile_engine(tiny_bundle, "text_encoder", runs=1, batch=3).shapes["input_ids"][0] == 3
    assert profile_engine(tiny_bundle, "unet", variant="masked", runs=1, batch=2).shapes["value_mask"][0] == 4
    with pytest.raises(InputError, match="is not profiled: take text_encoder, unet or vae_decoder"):
        profile_engine(tiny_bundle, "safety_checker", runs=1)


def test_tensorrt_s_engines_are_left_to_its_own_tools(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    manifest = open_bundle(folder)
    recipe = {**manifest.recipe, "engine": {**manifest.recipe["engine"], "backend": "tensorrt-rtx"}, "tensorrt_rtx": {"targets": ["sm86"]}}
    amend(folder, manifest.model_copy(update={"recipe": recipe}), lambda _: {})
    with pytest.raises(InputError, match="dumpProfile"):
        profile_engine(folder)


def test_a_profile_is_json(bundle: Path) -> None:
    assert json.loads(profile_engine(bundle, runs=1).model_dump_json())["schema_version"] == 1


def test_of_floats_nothing_is_in_integers(bundle: Path) -> None:
    assert profile_engine(bundle, runs=1).integers == 0


def test_of_integers_no_best_time_is_known(tmp_path: Path) -> None:
    feed = {"x": np.random.default_rng(0).standard_normal((4, 64), np.float32)}
    found = _profiled(save_integers(tmp_path / "model.onnx"), EngineSettings(threads=1), feed, 1, lambda _: None)
    assert found["integers"] == 1
    assert found["gflops"] is not None
    assert found["limit_ms"] is None
