"""A bundle's UNets, quantized: ranges found and read, files written and tried, and what stays as it is and why."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.export.quantization._rewriting import DATA
from nemo_edge.export.quantization.quantize import RECORD, Files, Quantized, check_ranges, find_ranges, quantize_files
from nemo_edge.export.quantization.ranges import Ranges
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import VALUE_DATA
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.system.errors import InputError
from nemo_edge.system.progress import Progress


@pytest.fixture(scope="module")
def files(tiny_bundle: Path) -> Files:
    layers = NeuronSet.load(tiny_bundle / "neurons.json").layers
    sampling = SamplingSettings(scheduler="ddim", steps=2, guidance=3.0)
    return Files(tiny_bundle, ("baked", "masked"), ("a dog", "a cat"), sampling, None, layers, "source")


@pytest.fixture(scope="module")
def ranges(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Ranges:
    folder = tmp_path_factory.mktemp("ranges")
    found = find_ranges(files, folder, Progress())
    assert not list(folder.iterdir())
    return found


def test_ranges_are_the_same_each_time_and_say_what_they_are_of(files: Files, ranges: Ranges, tmp_path: Path) -> None:
    assert find_ranges(files, tmp_path, Progress()) == ranges
    assert (ranges.prompts, ranges.source, ranges.sampling["steps"]) == (files.prompts, "source", 2)
    assert set(ranges.outputs) < set(ranges.inputs)
    assert all(limits[0].value > 0 and limits[0].share == 1 for limits in ranges.inputs.values())


def test_both_files_are_written_tried_and_recorded(files: Files, ranges: Ranges, tmp_path: Path) -> None:
    settings = QuantizationSettings(prompts=2)
    found = quantize_files(files, settings, ranges, tmp_path, {"version": "1"}, Progress())
    assert Quantized.model_validate_json((tmp_path / RECORD).read_bytes()) == found
    assert found.errors.keys() == {"unet", "unet_masked"}
    assert all(0 < error < 0.1 for error in found.errors.values())
    assert not found.modules.keys() & found.kept.keys()
    assert found.modules.keys() | found.kept.keys() >= ranges.inputs.keys()
    facts = {entry.key: entry.value for entry in open_graph(tmp_path / "unet" / "model.onnx").model.metadata_props}
    assert facts["nemo_edge.quantization"] == "int8"
    assert facts["nemo_edge.neurons"] == NeuronSet.load(files.bundle / "neurons.json").content_hash()
    names = {place: {p.name for p in (tmp_path / place).iterdir()} for place in found.errors}
    assert {"model.onnx", DATA} <= names["unet"] & names["unet_masked"]
    assert names["unet"] <= {"model.onnx", DATA, VALUE_DATA}, "nothing but what takes the place of the files in float32"


def test_modules_that_rounding_changes_too_much_stay(files: Files, ranges: Ranges, tmp_path: Path) -> None:
    found = quantize_files(files, QuantizationSettings(), ranges, tmp_path / "a", {}, Progress())
    worst = max(found.modules.values(), key=lambda rounded: rounded.error).error
    strict = quantize_files(files, QuantizationSettings(error=worst * 0.9), ranges, tmp_path / "b", {}, Progress())
    assert set(strict.modules) < set(found.modules)
    assert all("rounding alone changes it by" in strict.kept[name] for name in found.modules.keys() - strict.modules.keys())


def test_weights_alone_need_no_ranges(files: Files, tmp_path: Path) -> None:
    found = quantize_files(files, QuantizationSettings(scheme="int8_weights"), None, tmp_path, {}, Progress())
    assert max(found.errors.values()) < 0.02
    assert all(rounded.input == rounded.output == 0 for rounded in found.modules.values())


def test_ranges_of_another_checkpoint_or_of_fewer_modules_are_refused(files: Files, ranges: Ranges) -> None:
    path, remedy = Path("r.json"), "leave out quantization.ranges, and they are found anew"
    check_ranges(ranges, path, files)
    with pytest.raises(InputError, match=rf"r\.json: these are the ranges of another checkpoint: {remedy}"):
        check_ranges(ranges.model_copy(update={"source": "other"}), path, files)
    fewer = dict(list(ranges.inputs.items())[1:])
    with pytest.raises(InputError, match=rf"r\.json has no range of {next(iter(ranges.inputs))}: {remedy}"):
        check_ranges(ranges.model_copy(update={"inputs": fewer}), path, files)
