"""What a build is made from and takes: counted from its inputs, and estimated as its recipe has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.recipe.quantization import QuantizationSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.release._cache import cache_of
from nemo_edge.release._forecast import forecast
from nemo_edge.release._preflight import preflight
from nemo_edge.system.progress import Progress


@pytest.fixture
def recipe(tiny_recipe: Path, tmp_path: Path) -> Recipe:
    return load_recipe(tiny_recipe).model_copy(update={"output": tmp_path / "out"})


def test_inputs_are_counted(recipe: Recipe) -> None:
    found = forecast(preflight(recipe, Progress()))
    assert (found.memorized, found.with_pictures, found.calibrating, found.held_out) == (2, 0, 4, 2)
    assert (found.height, found.width, found.steps, found.seeds) == (32, 32, 3, 2)
    assert list(found.does) == ["calibrate", "localize", "policies", "export", "measure"]
    assert all(found.does.values())
    assert found.seconds == {}


def test_room_is_that_of_the_recipes_type_and_variants(recipe: Recipe) -> None:
    seen = preflight(recipe, Progress())
    assert seen.footprint is not None
    for index, (dtype, variants) in enumerate((("fp32", ("baked", "masked")), ("fp32", ("baked",)), ("fp16", ("baked", "masked")))):
        export = recipe.export.model_copy(update={"dtype": dtype, "variants": variants})
        room = forecast(preflight(recipe.model_copy(update={"export": export}), Progress())).room
        assert room is not None
        assert room.disk_bytes == seen.footprint.needs[index].disk_bytes
        assert room.memory_bytes["measure"] == seen.footprint.needs[index].measure_bytes


def test_memory_to_find_ranges_is_told_where_they_are_found(recipe: Recipe, tmp_path: Path) -> None:
    seen = preflight(recipe, Progress())
    assert seen.footprint is not None
    found = {}
    for scheme in ("int8", "int8_weights"):
        quantization = QuantizationSettings.model_validate({"prompts": 2, "scheme": scheme})
        room = forecast(preflight(recipe.model_copy(update={"quantization": quantization}), Progress())).room
        assert room is not None
        found[scheme] = room.memory_bytes.get("quantize")
    assert found == {"int8": seen.footprint.needs[0].ranges_bytes, "int8_weights": None}


def test_the_size_is_the_recipes_where_it_says_one(recipe: Recipe) -> None:
    sampling = recipe.sampling.model_copy(update={"height": 48})
    found = forecast(preflight(recipe.model_copy(update={"sampling": sampling}), Progress()))
    assert (found.height, found.width) == (48, 32)


def test_what_stages_took_before_is_there(recipe: Recipe) -> None:
    cache_of(recipe.output).mkdir()
    (cache_of(recipe.output) / "times.json").write_text('{"export": 12.5}')
    assert forecast(preflight(recipe, Progress())).seconds == {"export": 12.5}
