"""The key of a stage changes with all that its result depends on, and with nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nemo_edge.recipe.random_weights import RandomSettings
from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import LatencySettings
from nemo_edge.recipe.targets import ProfileSettings, TensorRtRtxSettings, TensorRtSettings
from nemo_edge.release._inputs import Inputs, read_inputs, used_versions
from nemo_edge.release._keys import bundle_key
from nemo_edge.release._stages import stage_keys
from nemo_edge.system.environment import Gpu
from nemo_edge.system.errors import InputError

ALL = ["localize", "export", "tensorrt_rtx", "latency"]


@pytest.fixture
def random(tiny_recipe: Path) -> Recipe:
    """A recipe for random weights with every stage that such a bundle has."""
    changes: dict[str, Any] = {"random_weights": RandomSettings(architecture="sd15"), "latency": LatencySettings()}
    changes["tensorrt_rtx"] = TensorRtRtxSettings(targets=("sm86",))
    return load_recipe(tiny_recipe).model_copy(update=changes)


def changed(recipe: Recipe, **tables: dict[str, Any]) -> Recipe:
    return recipe.model_copy(update={name: getattr(recipe, name).model_copy(update=values) for name, values in tables.items()})


def other_version(package: str) -> Callable[[Inputs], Inputs]:
    def change(given: Inputs) -> Inputs:
        versions = {**given.machine.versions, package: "0.0.0"}
        return replace(given, machine=given.machine.model_copy(update={"versions": versions}))

    return change


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"random_weights": {"architecture": "sd21"}}, ALL),
        ({"random_weights": {"seed": 1}}, ALL),
        ({"localization": {"layers": "all"}}, ALL),
        ({"localization": {"samples": 3, "steps": 7}}, []),
        ({"export": {"dtype": "fp16"}}, ALL[1:]),
        ({"export": {"fp32": ("unet",)}}, ALL[1:]),
        ({"export": {"height": 256}}, ALL[1:]),
        ({"export": {"opset": 18}}, ALL[1:]),
        ({"tensorrt_rtx": {"targets": ("sm86", "sm89")}}, ["tensorrt_rtx"]),
        ({"tensorrt_rtx": {"profiles": (ProfileSettings(height=256),)}}, ["tensorrt_rtx"]),
        ({"tensorrt_rtx": {"components": ("unet",)}}, ["tensorrt_rtx"]),
        ({"latency": {"runs": 7}}, ["latency"]),
        ({"engine": {"threads": 1}}, ["latency"]),
        ({"sampling": {"steps": 7}}, ["latency"]),
        ({"gates": {"replication": 0.5}}, []),
        ({"prompts": {"limit": 1}}, []),
    ],
)
def test_a_setting_changes_the_keys_of_what_depends_on_it(random: Recipe, tables: dict[str, dict[str, Any]], expected: list[str]) -> None:
    before = stage_keys(random, read_inputs(random))
    other = changed(random, **tables)
    after = stage_keys(other, read_inputs(other))
    assert list(before) == ALL
    assert [stage for stage in ALL if before[stage] != after[stage]] == expected


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("nemo-edge", ALL),
        ("torch", ALL),
        ("onnxruntime", ALL),
        ("tensorrt-rtx-cu13", ["tensorrt_rtx"]),
        ("tensorrt-rtx-cu14", ["tensorrt_rtx"]),
        ("tensorrt-rtx", ["tensorrt_rtx"]),
        ("tensorrt-rtx-cu13-libs", []),
        ("tensorrt", []),
        ("openvino", []),
    ],
)
def test_a_package_changes_the_keys_of_what_it_makes(random: Recipe, package: str, expected: list[str]) -> None:
    given = read_inputs(random)
    before, after = stage_keys(random, given), stage_keys(random, other_version(package)(given))
    assert [stage for stage in ALL if before[stage] != after[stage]] == expected
    assert ("tensorrt-rtx-cu13" in used_versions(other_version("tensorrt-rtx-cu13")(given).machine, random)) is True
    assert "openvino" not in used_versions(other_version("openvino")(given).machine, random)


def test_openvino_counts_where_it_runs_or_is_timed(random: Recipe) -> None:
    given = read_inputs(random)
    run = changed(random, engine={"backend": "openvino"})
    timed = changed(random, latency={"beside": ("openvino fp32",)})
    for recipe, expected in ((run, ["latency"]), (timed, ["latency"])):
        before, after = stage_keys(recipe, given), stage_keys(recipe, other_version("openvino")(given))
        assert [stage for stage in ALL if before[stage] != after[stage]] == expected
        assert "openvino" in used_versions(other_version("openvino")(given).machine, recipe)


@pytest.fixture
def standard(random: Recipe) -> Recipe:
    """The recipe with engines of TensorRT in place of TensorRT-RTX."""
    return random.model_copy(update={"tensorrt_rtx": None, "tensorrt": TensorRtSettings(), "latency": None})


def on(given: Inputs, *gpus: Gpu) -> Inputs:
    return replace(given, machine=given.machine.model_copy(update={"gpus": gpus}))


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt-cu12", "tensorrt-cu14"])
def test_another_version_of_tensorrt_builds_other_engines(standard: Recipe, package: str) -> None:
    given = read_inputs(standard)
    old, new, rtx = (other_version(name)(given) for name in (package, f"{package}-libs", "tensorrt-rtx-cu13"))
    before = stage_keys(standard, given)
    assert {stage for stage, key in stage_keys(standard, old).items() if key != before[stage]} == {"tensorrt"}
    assert stage_keys(standard, new) == stage_keys(standard, rtx) == before
    assert used_versions(old.machine, standard)[package] == "0.0.0"


@pytest.mark.parametrize(
    "settings",
    [
        {"refit": "value_weights"},
        {"optimization_level": 4},
        {"hardware_compatibility": "ampere_plus"},
        {"version_compatible": True},
        {"weight_streaming": True},
        {"components": ("unet",)},
        {"profiles": (ProfileSettings(height=256),)},
    ],
)
def test_a_setting_of_tensorrt_builds_other_engines(standard: Recipe, settings: dict[str, Any]) -> None:
    given, other = read_inputs(standard), changed(standard, tensorrt=settings)
    before, after = stage_keys(standard, given), stage_keys(other, given)
    assert [stage for stage in before if before[stage] != after[stage]] == ["tensorrt"]


def test_engines_of_tensorrt_are_of_a_gpu_and_its_driver(standard: Recipe, random: Recipe) -> None:
    h100 = Gpu(name="NVIDIA H100", driver="580.95", memory_mib=81559, compute_capability="9.0")
    given = read_inputs(standard)
    places = [(), (h100,), (h100.model_copy(update={"name": "NVIDIA H200"}),), (h100.model_copy(update={"driver": "590.10"}),)]
    assert len({stage_keys(standard, on(given, *gpus))["tensorrt"] for gpus in places}) == len(places)
    assert len({stage_keys(random, on(given, *gpus))["tensorrt_rtx"] for gpus in places}) == 1
    hot = h100.model_copy(update={"temperature_c": 80, "clock_mhz": 345})
    assert stage_keys(standard, on(given, h100)) == stage_keys(standard, on(given, hot))


def test_the_content_of_a_neurons_file_is_part_of_every_key(random: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "neurons.json"
    recipe = changed(random, random_weights={"neurons": path})
    with pytest.raises(InputError, match=r"neurons\.json, which the recipe names, does not exist"):
        read_inputs(recipe)
    path.write_text("one")
    before = stage_keys(recipe, read_inputs(recipe))
    path.write_text("two")
    after = stage_keys(recipe, read_inputs(recipe))
    assert all(before[stage] != after[stage] for stage in ALL)


def test_the_weights_are_part_of_every_key(random: Recipe, tiny_recipe: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_recipe.parent / "model", tmp_path / "model")
    recipe = changed(random, checkpoint={"path": str(model)})
    before = stage_keys(recipe, read_inputs(recipe))
    assert before == stage_keys(random, read_inputs(random))
    (model / "unet/config.json").write_text((model / "unet/config.json").read_text() + "\n")
    assert all(before[stage] != key for stage, key in stage_keys(recipe, read_inputs(recipe)).items())


@pytest.mark.parametrize(
    "tables", [{"gates": {"replication": 0.5}}, {"engine": {"threads": 1}}, {"sampling": {"steps": 7}}, {"export": {"dtype": "fp16"}}]
)
def test_a_bundle_is_another_where_it_is_judged_or_run_otherwise(random: Recipe, tables: dict[str, dict[str, Any]]) -> None:
    recipe = random.model_copy(update={"latency": None})
    other, given = changed(recipe, **tables), read_inputs(recipe)
    assert bundle_key(recipe, stage_keys(recipe, given)) != bundle_key(other, stage_keys(other, given))
    moved = recipe.model_copy(update={"output": Path("/elsewhere")})
    assert bundle_key(recipe, stage_keys(recipe, given)) == bundle_key(moved, stage_keys(moved, given))


def with_general(recipe: Recipe, folder: Path, *texts: str, **tables: dict[str, Any]) -> Recipe:
    """The recipe of a build with other general prompts."""
    (folder / "g.txt").write_text("".join(f"{text}\n" for text in texts))
    return changed(recipe, prompts={"general": folder / "g.txt"}, **tables)


def test_general_prompts_calibrate_from_the_front_and_are_measured_from_the_end(tiny_recipe: Path, tmp_path: Path) -> None:
    texts = ["a", "b", "B", "c", " a  ", "d", "e", "f", "g"]  # the case and the blanks are nothing to a text encoder
    given = read_inputs(with_general(load_recipe(tiny_recipe), tmp_path, *texts))
    assert [p.text for p in given.general] == ["a", "b", "c", "d"]
    assert [p.text for p in given.held_out] == ["f", "g"]
    assert len(given.memorized) == 2


@pytest.mark.parametrize("text", ["a red pig", "A  RED\tpig ", "THIRD"])
def test_a_general_prompt_that_is_a_memorized_one_is_refused(tiny_recipe: Path, tmp_path: Path, text: str) -> None:
    recipe = with_general(load_recipe(tiny_recipe), tmp_path, *"abcdef", text)  # "third" is beyond the recipe's limit
    with pytest.raises(InputError, match=r"1 of the general prompts in .*g\.txt stand .* of .*memorized\.csv too \('.*'\)") as caught:
        read_inputs(recipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "asked", "remedy"),
    [
        (104, (300, 16), "set calibration.prompts = 88 in the recipe, or add 212 prompts"),
        (18, (300, 16), "set calibration.prompts = 2 in the recipe, or add 298 prompts"),
        (17, (300, 16), "set calibration.prompts = 13 and fidelity.general_prompts = 4 in the recipe, or add 299 prompts"),
        (3, (2, 2), "set calibration.prompts = 2 and fidelity.general_prompts = 1 in the recipe, or add 1 prompt"),
        (2, (2, 1), ": add 1 prompt"),
    ],
)
def test_fewer_general_prompts_than_asked_for_are_refused_with_what_would_fit(
    tiny_recipe: Path, tmp_path: Path, count: int, asked: tuple[int, int], remedy: str
) -> None:
    recipe, texts = load_recipe(tiny_recipe), [f"prompt {number}" for number in range(count)]
    tables = {"calibration": {"prompts": asked[0]}, "fidelity": {"general_prompts": asked[1]}}
    for size in (count, count + 1):  # one that is there twice counts once
        wanting = with_general(recipe, tmp_path, *(*texts, "Prompt 0")[:size], **tables)
        with pytest.raises(InputError, match=f"holds {count} different general prompts") as caught:
            read_inputs(wanting)
        assert str(caught.value).endswith(remedy)
    numbers = {name: int(value) for name, value in re.findall(r"([\w.]+) = (\d+)", remedy)}
    if numbers:  # what is proposed is taken
        tables = {
            "calibration": {"prompts": numbers["calibration.prompts"]},
            "fidelity": {"general_prompts": numbers.get("fidelity.general_prompts", asked[1])},
        }
        given = read_inputs(with_general(recipe, tmp_path, *texts, **tables))
        assert len(given.general) + len(given.held_out) == count


def test_random_weights_need_no_prompts(random: Recipe, tmp_path: Path) -> None:
    recipe = changed(random, prompts={"memorized": tmp_path / "none.csv", "general": tmp_path / "none.txt"})
    given = read_inputs(recipe)
    assert (given.memorized, given.general, given.held_out, given.prompts) == ([], [], [], {})
