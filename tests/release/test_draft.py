"""A first recipe is one that a dry run takes, whatever the checkpoint; nothing is written where it would not be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import save_toy_sd, save_toy_sdxl, toy_unet
from diffusers import EulerDiscreteScheduler, LCMScheduler
from transformers import CLIPTokenizer

from nemo_edge.recipe.recipe import load_recipe
from nemo_edge.recipe.schema import schema_text
from nemo_edge.release.build import plan
from nemo_edge.release.draft import Draft, Wish, draft
from nemo_edge.system.errors import InputError

Lists = dict[str, Path]
UP = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownBlock2D",) * 2,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": None,
    "layers_per_block": 1,
}
EULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPES: dict[str, Callable[[Path, CLIPTokenizer], Path]] = {
    "1.x": save_toy_sd,
    "2.x": lambda folder, tok: save_toy_sd(folder, tok, toy_unet(use_linear_projection=True), prediction_type="v_prediction"),
    "xl": save_toy_sdxl,
    "told": lambda folder, tok: save_toy_sd(folder, tok, toy_unet(time_cond_proj_dim=8), LCMScheduler(**EULER)),
    "turbo": lambda folder, tok: save_toy_sd(folder, tok, None, EulerDiscreteScheduler(**EULER, timestep_spacing="trailing")),
    "up": lambda folder, tok: save_toy_sd(folder, tok, toy_unet(**UP)),
    "wide": lambda folder, tok: save_toy_sd(folder, tok, toy_unet(sample_size=(16, 24))),
}


@pytest.fixture
def lists(tmp_path: Path) -> Lists:
    (tmp_path / "m.csv").write_text("Caption\na red pig\nan owl\n")
    (tmp_path / "g.txt").write_text("\n".join(f"a {word}" for word in ["dog", "cat", "bus", "key", "bell", "tree", "car"]))
    return {"memorized": tmp_path / "m.csv", "general": tmp_path / "g.txt"}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_dry_run_takes_it(tmp_path: Path, tokenizer: CLIPTokenizer, lists: Lists, shape: str) -> None:
    model = SHAPES[shape](tmp_path / f"my {shape} model", tokenizer)
    file = tmp_path / "recipes" / "first.toml"
    made = draft(Wish(str(model), recipe=file, **lists))
    assert (made.recipe, made.missing) == (str(file), ())
    found = plan(file)
    assert (found.name, found.forecast.memorized) == (f"my-{shape}-model", 2)
    assert (found.forecast.calibrating, found.forecast.held_out) == (6, 1)
    recipe = load_recipe(file)
    assert (recipe.sampling.height, recipe.sampling.width) == (32, 48 if shape == "wide" else 32)
    assert recipe.localization.layers == ("all" if shape == "up" else "paper")
    assert recipe.sampling.steps == {"told": 4, "turbo": 2}.get(shape, 25)
    assert (file.parent / "recipe.schema.json").read_text(encoding="utf-8") == schema_text()
    assert sorted(p.name for p in file.parent.iterdir()) == ["first.toml", "recipe.schema.json"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, toy_folder: Path) -> Draft:
    return draft(Wish(str(toy_folder), recipe=tmp_path_factory.mktemp("without") / "first.toml"))


def test_lists_that_are_still_to_be_made_are_named(made: Draft) -> None:
    assert made.missing == ("prompts/memorized.csv", "prompts/general.txt")
    assert "still to be made: prompts/memorized.csv, prompts/general.txt" in Path(made.recipe).read_text(encoding="utf-8")
    with pytest.raises(InputError, match=r"memorized\.csv does not exist: .*docs/prompts.md says where lists come from"):
        plan(made.recipe)


def test_what_runs_here_is_what_doctor_finds(made: Draft) -> None:
    assert made.engines[0].startswith("runs here: ONNX Runtime on cpu")
    recipe = load_recipe(made.recipe)
    assert recipe.engine.backend == ("openvino" if "OpenVINO" in made.engines[0] else "onnxruntime")
    [table] = re.findall(r"(?ms)^\[engine\]$(.*?)^$", Path(made.recipe).read_text(encoding="utf-8"))
    assert ("device = " in table, "provider = " in table) == (recipe.engine.backend == "openvino", recipe.engine.backend != "openvino")
    assert Draft.model_validate_json(made.model_dump_json()) == made


def test_engines_for_machines_elsewhere_are_asked_for(tmp_path: Path, toy_folder: Path, lists: Lists) -> None:
    pytest.importorskip("tensorrt_rtx")
    file = tmp_path / "rtx.toml"
    draft(Wish(str(toy_folder), recipe=file, targets=("sm89", "sm75"), **lists))
    recipe = load_recipe(file)
    assert recipe.tensorrt_rtx is not None
    assert (recipe.tensorrt_rtx.targets, recipe.export.dtype) == (("sm75", "sm89"), "fp16")
    assert list(plan(file).stages) == ["calibrate", "localize", "export", "tensorrt_rtx", "measure"]
    with pytest.raises(InputError, match="no recipe can be made of this: TensorRT-RTX does not compile for 'sm90'"):
        draft(Wish(str(toy_folder), recipe=tmp_path / "h.toml", targets=("sm90",), **lists))
    assert not (tmp_path / "h.toml").exists()


def test_what_is_there_is_not_written_over(tmp_path: Path, toy_folder: Path, lists: Lists) -> None:
    file = tmp_path / "first.toml"
    file.write_text("mine")
    with pytest.raises(InputError, match=r"first\.toml is there already: give another with --output, or --force"):
        draft(Wish(str(toy_folder), recipe=file, **lists))
    assert file.read_text() == "mine"
    draft(Wish(str(toy_folder), recipe=file, force=True, **lists))
    assert file.read_text().startswith("#:schema")
    (tmp_path / "recipe.schema.json").write_text(json.dumps({"title": "of something else"}))
    with pytest.raises(InputError, match=r"recipe\.schema\.json is there already and is not a recipe's schema"):
        draft(Wish(str(toy_folder), recipe=file, force=True, **lists))


@pytest.mark.parametrize(
    ("general", "complaint"),
    [("a dog\na cat\n", "holds 2 different prompts: add some, 3 are the fewest"), ("a dog\na cat\nan OWL\n", "stand among the memorized")],
)
def test_lists_that_cannot_be_used_are_refused_first(tmp_path: Path, toy_folder: Path, lists: Lists, general: str, complaint: str) -> None:
    lists["general"].write_text(general)
    with pytest.raises(InputError, match=complaint):
        draft(Wish(str(toy_folder), recipe=tmp_path / "first.toml", **lists))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.txt", "m.csv"]


def test_a_recipe_is_a_toml_file(tmp_path: Path, toy_folder: Path) -> None:
    for file, complaint in ((tmp_path / "first.json", "does not end in .toml"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=complaint):
            draft(Wish(str(toy_folder), recipe=file))


def test_without_a_place_it_is_called_as_the_checkpoint(tmp_path: Path, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "sd").symlink_to(toy_folder)
    made = draft(Wish("models/sd"))
    assert made.recipe == "sd.toml"
    assert load_recipe("sd.toml").checkpoint.path == "models/sd"
    assert 'path = "./models/sd"' in Path("sd.toml").read_text()
