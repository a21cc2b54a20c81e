"""The settings of quantization, and what does not go with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.recipe.quantization import LIMITS, QuantizationSettings
from nemo_edge.recipe.recipe import Recipe, SettingError, from_keywords, load_recipe
from nemo_edge.system.errors import InputError


def recipe(tiny_recipe: Path, tmp_path: Path, tables: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(tiny_recipe.read_text() + tables)
    return load_recipe(path)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ('[export]\ndtype = "fp16"\n[quantization]\nprompts = 2', "makes float16 ones for TensorRT by itself: leave export.dtype out"),
        ('[quantization]\nscheme = "fp8"\nprompts = 2', "'fp8' is run by TensorRT alone, and engine.backend is 'onnxruntime'"),
        ("[quantization]\nprompts = 5", r"of which there are 4 \(calibration\.prompts\): ask for fewer"),
        (
            '[quantization]\nscheme = "int4_weights"\nprompts = 2\n[tensorrt_rtx]\ntargets = ["sm75", "sm86"]',
            "compiles no bundle in int4_weights for sm75, .*: leave it out of the targets$",
        ),
        (
            '[quantization]\nscheme = "fp8"\nprompts = 2\n[engine]\nbackend = "tensorrt-rtx"\n[tensorrt_rtx]\ntargets = ["sm86", "sm89"]',
            "compiles no bundle in fp8 for sm86, alone or with others: .* or take quantization.scheme = 'int8'",
        ),
        ('[export]\nopset = 18\n[quantization]\nscheme = "int4_weights"\nprompts = 2', "export.opset = 18 has no operators for .* take 21"),
        ('[quantization]\nprompts = 2\n[engine]\nprovider = "tensorrt"', "quantized files are for ONNX Runtime on the CPU"),
        (
            '[quantization]\nscheme = "fp8"\nprompts = 2\n[engine]\nbackend = "tensorrt-rtx"\n[tensorrt_rtx]',
            "no bundle in fp8 for sm80, sm86",
        ),
        ('[quantization]\nkeep = [" "]', "a part of a path is empty"),
        ('[quantization]\nscheme = "int2"', "quantization.scheme"),
        ("[quantization]\npromts = 2", "did you mean 'quantization.prompts'"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_remedy(tiny_recipe: Path, tmp_path: Path, tables: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        recipe(tiny_recipe, tmp_path, tables)


def test_limits_of_a_quantized_engine_are_wider_unless_given(tiny_recipe: Path, tmp_path: Path) -> None:
    plain = recipe(tiny_recipe, tmp_path, "")
    quantized = recipe(tiny_recipe, tmp_path, "[quantization]\nprompts = 2")
    given = recipe(tiny_recipe, tmp_path, "[quantization]\nprompts = 2\n[gates]\nengine_error = 0.01\nmitigation_agreement = 0.02")
    assert quantized.engine_tolerance == LIMITS["int8"].engine_error
    assert quantized.agreement_tolerance == LIMITS["int8"].mitigation_agreement
    assert plain.engine_tolerance is not False
    assert plain.engine_tolerance < LIMITS["int8"].engine_error
    assert (given.engine_tolerance, given.agreement_tolerance) == (0.01, 0.02)


def test_only_activations_need_ranges() -> None:
    assert [name for name in LIMITS if QuantizationSettings(scheme=name).activations] == ["int8", "fp8"]


@pytest.mark.parametrize(("given", "said"), [({"prompts": 0}, "prompts"), ({"block": 8}, "block"), ({"error": 0}, "error")])
def test_what_makes_no_sense_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        from_keywords(QuantizationSettings, given)


@pytest.mark.parametrize(("steps", "pictures"), [(10, 16), (13, 15), (50, 4), (150, 1), (1000, 1)])
def test_so_many_pictures_are_drawn_whole_as_the_calls_allow(steps: int, pictures: int) -> None:
    assert QuantizationSettings().drawn(steps) == pictures
    assert QuantizationSettings(prompts=2).drawn(steps) == min(pictures, 2)
    assert QuantizationSettings(calls=1000).drawn(steps) == min(16, 1000 // steps)
