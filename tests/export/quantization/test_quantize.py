"""A bundle's UNets, quantized: ranges found and read, files written and tried, and what stays as it is and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.export.quantization import quantize as module
from nemo_edge.export.quantization._rewriting import DATA
from nemo_edge.export.quantization.quantize import RANGES, Files, _end, _error, _tell_error, check_ranges, find_ranges, quantize_files
from nemo_edge.export.quantization.ranges import Limit, Ranges
from nemo_edge.export.quantization.record import RECORD, Quantized
from nemo_edge.graph.onnxfile import open_graph
from nemo_edge.graph.valueweights import VALUE_DATA
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.system.errors import ExportError, InputError
from nemo_edge.system.progress import Progress


@pytest.fixture(scope="module")
def files(tiny_bundle: Path) -> Files:
    layers = NeuronSet.load(tiny_bundle / "neurons.json").layers
    sampling = SamplingSettings(scheduler="ddim", steps=2, guidance=3.0)
    return Files(tiny_bundle, ("baked", "masked"), ("a dog", "a cat"), sampling, None, layers, "source")


@pytest.fixture(scope="module")
def ranges(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Ranges:
    folder = tmp_path_factory.mktemp("ranges")
    found = find_ranges(files, (), folder, Progress())
    assert [path.name for path in folder.iterdir()] == [RANGES]
    assert Ranges.read(folder / RANGES) == found
    return found


def test_ranges_are_the_same_each_time_and_say_what_they_are_of(files: Files, ranges: Ranges, tmp_path: Path) -> None:
    assert find_ranges(files, (), tmp_path, Progress()) == ranges
    assert (ranges.prompts, ranges.source, ranges.sampling["steps"]) == (files.prompts, "source", 2)
    assert set(ranges.outputs) < set(ranges.inputs)
    assert all(limits[0].value > 0 and limits[0].share == 1 for limits in ranges.inputs.values())


def test_both_files_are_written_tried_and_recorded(files: Files, ranges: Ranges, tmp_path: Path) -> None:
    settings = QuantizationSettings(prompts=2)
    found = quantize_files(files, settings, ranges, tmp_path, {"version": "1"}, Progress())
    assert Quantized.model_validate_json((tmp_path / RECORD).read_bytes()) == found
    assert found.errors.keys() == {"unet", "unet_masked"}
    assert all(0 < error < 0.1 for error in found.errors.values())
    assert found.integers.keys() == found.errors.keys()
    assert all(0 < share < 1 for share in found.integers.values())
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
    assert all("rounding is estimated to change it by" in strict.kept[name] for name in found.modules.keys() - strict.modules.keys())


def test_work_that_is_hardly_in_integers_is_told(files: Files, ranges: Ranges, tmp_path: Path) -> None:
    class Notes(Progress):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, message: str) -> None:
            self.notes.append(message)

    few = Notes()
    found = quantize_files(files, QuantizationSettings(keep=("resnets", "ff")), ranges, tmp_path, {}, few)
    share = min(found.integers.values())
    assert 0 < share < 0.5
    assert len(few.notes) == 1
    assert few.notes[0].startswith(f"{share:.0%} of what the UNet multiplies are integers, and below 90% it may be slower")


def test_weights_alone_need_no_ranges(files: Files, tmp_path: Path) -> None:
    found = quantize_files(files, QuantizationSettings(scheme="int8_weights"), None, tmp_path, {}, Progress())
    assert max(found.errors.values()) < 0.02
    assert all(rounded.input == rounded.output == 0 for rounded in found.modules.values())
    assert not found.integers


def test_ranges_of_another_checkpoint_or_of_fewer_modules_are_refused(files: Files, ranges: Ranges) -> None:
    path, remedy = Path("r.json"), "leave the file out, and they are found anew"
    check_ranges(ranges, path, files)
    with pytest.raises(InputError, match=rf"r\.json: these are the ranges of another checkpoint: {remedy}"):
        check_ranges(ranges.model_copy(update={"source": "other"}), path, files)
    fewer = dict(list(ranges.inputs.items())[1:])
    with pytest.raises(InputError, match=rf"r\.json has no range of {next(iter(ranges.inputs))}: {remedy}"):
        check_ranges(ranges.model_copy(update={"inputs": fewer}), path, files)
    other = ranges.model_copy(update={"sampling": {**ranges.sampling, "steps": 9}})
    with pytest.raises(InputError, match=r"the ranges of another \[sampling\]"):
        check_ranges(other, path, files)


def test_what_leaves_nothing_to_quantize_is_refused(files: Files, ranges: Ranges, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is left to be quantized: take parts out of"):
        quantize_files(files, QuantizationSettings(keep=("block",)), ranges, tmp_path, {}, Progress())
    with pytest.raises(InputError, match="'nowhere'"):
        find_ranges(files, ("block", "nowhere"), tmp_path, Progress())
    assert not list(tmp_path.iterdir())


def test_a_range_that_float16_has_no_scale_for_is_told_by_its_module(files: Files, ranges: Ranges, tmp_path: Path) -> None:
    module, limits = next(iter(ranges.inputs.items()))
    wide = {**ranges.inputs, module: tuple(limit._replace(value=1e9) for limit in limits)}
    with pytest.raises(InputError, match=f"{module} has values beyond 8e\\+06"):
        quantize_files(files, QuantizationSettings(), ranges.model_copy(update={"inputs": wide}), tmp_path, {}, Progress())


def test_a_unet_that_says_nothing_is_told(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(OnnxRuntimeRunner):
        def __call__(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {name: np.zeros_like(array) for name, array in super().__call__(feed).items()}

    monkeypatch.setattr(module, "OnnxRuntimeRunner", Silent)
    with pytest.raises(ExportError, match=r"unet/model\.onnx says nothing but zeros"):
        _error(files, "baked", files.path("baked"))


def test_an_error_beyond_what_an_engine_may_have_is_told() -> None:
    notes: list[str] = []

    class Notes(Progress):
        def note(self, message: str) -> None:
            notes.append(message)

    for error in (0.19, 0.21):
        _tell_error("unet", error, QuantizationSettings(), Notes())
    assert notes == [
        "what unet says differs by 21% once it is int8, and by 20% it may: other ranges, or more in quantization.keep, may mend it"
    ]


def test_floats_keep_their_range_where_integers_would_clip_it() -> None:
    limits = [Limit(1.0, 160.0, 0.2, 0.026), Limit(0.99999, 57.0, 0.1, 0.08), Limit(0.9999, 30.0, 0.12, 0.1), Limit(0.999, 9.0, 0.3, 0.3)]
    assert _end(limits, QuantizationSettings()) == (57.0, 0.1)
    assert _end(limits, QuantizationSettings(scheme="fp8")) == (160.0, 0.026)
    assert _end(limits, QuantizationSettings(range="99.99 %")) == (30.0, 0.12)
