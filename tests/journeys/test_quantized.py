"""A build with [quantization]: from ranges to a bundle whose engines are integers, measured, drawn with, rebaked and taken up again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge import __version__
from nemo_edge.bundle.manifest import open_bundle, verify
from nemo_edge.export.quantization.half import is_quantized
from nemo_edge.export.quantization.quantize import RANGES
from nemo_edge.export.quantization.record import RECORD, Origin, Quantized
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import open_value_weights
from nemo_edge.measure.mitigation import Measurement
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.quantization import LIMITS, QuantizationSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.release.build import build, plan
from nemo_edge.release.rebake import rebake
from nemo_edge.sampling.generate import Request, draw


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Path, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """The tiny recipe, quantized, beside the finished stages of the tiny bundle."""
    output = tmp_path_factory.mktemp("quantized") / "out"
    shutil.copytree(tiny_bundle.parent / ".out.build", output.parent / ".out.build")
    return load_recipe(tiny_recipe).model_copy(update={"output": output, "quantization": QuantizationSettings(prompts=2)})


@pytest.fixture(scope="module")
def bundle(recipe: Recipe) -> Path:
    assert {"calibrate", "localize", "export"} <= set(plan(recipe).done)
    return Path(build(recipe).bundle)


def test_its_files_are_integers_and_it_says_so(bundle: Path, tiny_bundle: Path) -> None:
    manifest = open_bundle(bundle)
    assert {RANGES, RECORD} <= set(manifest.files)
    assert verify(bundle).passed
    record = Quantized.model_validate_json((bundle / RECORD).read_bytes())
    for place in ("unet", "unet_masked"):
        assert is_quantized(open_graph(bundle / place / "model.onnx"))
        assert record.errors[place] > 0
        size, before = (sum(p.stat().st_size for p in (b / place).glob("*.data")) for b in (bundle, tiny_bundle))
        assert size < before
    assert "Its UNet is quantized (int8" in (bundle / "report" / "model_card.md").read_text()
    assert record.ranges == Origin(prompts=2, steps=3, version=__version__, file=False)
    assert all(0 < share < 1 for share in record.integers.values())
    page = (bundle / "report" / "index.html").read_text()
    assert '<section id="quantized">' in page
    assert "2 general prompts drawn, 3 steps each" in page


def test_it_is_measured_as_it_is_and_judged_by_limits_of_its_own(bundle: Path) -> None:
    measured, gates = Measurement.read(bundle), {gate.name: gate for gate in open_bundle(bundle).gates}
    for variant in measured.variants:
        gate = gates[f"engine_error.{variant.variant}"]
        assert gate.limit == LIMITS["int8"].engine_error
        assert gate.value == variant.trajectory.forced_error > 1e-4
        assert "each step alone" in gate.detail
    assert measured.mask_of_ones == 0, "both variants have the same integers and scales"


def test_what_is_silenced_is_zero_to_the_bit(bundle: Path) -> None:
    neurons = NeuronSet.load(bundle / "neurons.json")
    values = open_value_weights(open_graph(bundle / "unet" / "model.onnx"), neurons.layers).values
    rows = [values[f"{layer.name}.weight"][row] for layer, chosen in neurons.items() for row in chosen]
    assert rows
    assert not np.any(rows)


def test_it_draws_in_onnx_runtime_and_openvino(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    drawn = [draw(bundle, Request("a red pig", seed=3, backend=b), tmp_path / f"{b}.png")[0] for b in (None, "openvino")]
    pictures = [np.asarray(Image.open(path)).astype(int) for path in drawn]
    assert np.abs(pictures[0] - pictures[1]).mean() < 16, "an activation at the border of two integers may fall to either side"


def test_other_neurons_are_baked_into_it(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    neurons = NeuronSet.load(bundle / "neurons.json")
    other = neurons.others(3, 0)
    other.save(tmp_path / "other.json")
    rebake(copy, tmp_path / "other.json")
    values = open_value_weights(open_graph(copy / "unet" / "model.onnx"), other.layers).values
    for layer, chosen in other.items():
        for row in chosen:
            assert not values[f"{layer.name}.weight"][row].any()
    assert verify(copy).passed


def test_other_settings_use_the_same_ranges_and_a_file_of_them_is_read_back(recipe: Recipe, bundle: Path, tmp_path: Path) -> None:
    assert build(recipe).skipped
    assert recipe.quantization is not None
    kept = recipe.model_copy(update={"quantization": recipe.quantization.model_copy(update={"keep": ("mid_block.",)})})
    assert "ranges" in plan(kept).done
    assert not {"quantize", "measure"} & set(plan(kept).done)
    shutil.copyfile(bundle / RANGES, tmp_path / RANGES)
    given = recipe.quantization.model_copy(update={"ranges": tmp_path / RANGES})
    output = tmp_path / "out"
    shutil.copytree(recipe.output.parent / ".out.build", tmp_path / ".out.build")
    again = build(recipe.model_copy(update={"quantization": given, "output": output}))
    for name in ("model.onnx", "model.onnx.data"):
        assert (output / "unet" / name).read_bytes() == (bundle / "unet" / name).read_bytes()
    assert RANGES not in again.manifest.files
    assert json.loads((output / RECORD).read_text())["modules"] == json.loads((bundle / RECORD).read_text())["modules"]
