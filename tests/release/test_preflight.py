"""What a build would stumble over after hours is found before its first stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from rebuilding import Record

from nemo_edge.recipe.recipe import Recipe, load_recipe
from nemo_edge.recipe.settings import FidelitySettings, LatencySettings
from nemo_edge.release import _footprint as footprint
from nemo_edge.release.build import build, plan
from nemo_edge.release.random_weights import MARKER, RandomWeights
from nemo_edge.system.errors import InputError


def test_a_dry_run_says_which_sizes_the_graph_cannot_take(tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    odd = recipe.sampling.model_copy(update={"height": 34})
    with pytest.raises(InputError, match="height 34 is not a multiple of"):
        plan(recipe.model_copy(update={"sampling": odd}))
    with pytest.raises(InputError, match="width 38 is not a multiple of"):
        plan(recipe.model_copy(update={"latency": LatencySettings().model_copy(update={"sizes": ((32, 38),)})}))
    plan(recipe.model_copy(update={"sampling": odd, "export": recipe.export.model_copy(update={"height": 34})}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda r, _: {"checkpoint": r.checkpoint.model_copy(update={"path": "/none"})}, "checkpoint /none does not exist"),
        (lambda r, f: {"checkpoint": r.checkpoint.model_copy(update={"path": str(f)})}, "holds no files of a model"),
        (lambda r, f: {"prompts": r.prompts.model_copy(update={"general": f / "none.txt"})}, r"none\.txt does not exist"),
        (lambda r, f: {"fidelity": FidelitySettings(general_prompts=2, sscd=f / "sscd.pt")}, r"sscd\.pt, which the recipe names, does not"),
        (lambda r, f: {"output": f / ".."}, "is not empty and not a bundle"),
    ],
)
def test_a_dry_run_finds_what_cannot_be_used(
    tiny_recipe: Path, tmp_path: Path, change: Callable[[Recipe, Path], dict[str, object]], reason: str
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (tmp_path / "mine").write_text("")
    recipe = load_recipe(tiny_recipe)
    with pytest.raises(InputError, match=reason):
        plan(recipe.model_copy(update=change(recipe, folder)))


def test_two_general_prompts_are_too_few(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("a\nb\n")
    recipe = load_recipe(tiny_recipe)
    with pytest.raises(InputError, match=r"g\.txt holds 2 different general prompts, but the recipe asks for 6 .*: add 4 prompts$"):
        plan(recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"general": tmp_path / "g.txt"})}))


def test_a_size_that_the_graph_cannot_take_is_found_before_the_work(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe)
    changed = recipe.model_copy(
        update={
            "output": tmp_path / "out",
            "export": recipe.export.model_copy(update={"height": 24}),
            "sampling": recipe.sampling.model_copy(update={"height": 24, "width": 34}),
            "calibration": recipe.calibration.model_copy(update={"prompts": 3}),
        }
    )
    record = Record()
    with pytest.raises(InputError, match=r"width 34 is not a multiple of 4 pixels.*take 32 or 36"):
        build(changed, record)
    assert record.tasks == []


def test_a_picture_that_cannot_be_read_is_found_before_the_work(tiny_recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x"
    shutil.copytree(tiny_recipe.parent, folder, ignore=shutil.ignore_patterns("out", ".*"))
    (folder / "memorized.csv").write_text("Caption;image\na red pig;a.png\n")
    (folder / "a.png").write_text("no picture")
    for run in (plan, build):
        with pytest.raises(InputError, match=r"a\.png"):
            run(load_recipe(folder / "recipe.toml"))


def test_the_memory_for_a_checkpoint_of_the_hub_is_judged_where_it_lies(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "models--owner--model"
    shutil.copytree(tiny_recipe.parent / "model", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    recipe = load_recipe(tiny_recipe)
    checkpoint = recipe.checkpoint.model_copy(update={"path": "owner/model"})
    recipe = recipe.model_copy(update={"output": tmp_path / "out", "checkpoint": checkpoint})
    assert plan(recipe).done == ()
    monkeypatch.setattr(footprint, "memory_available", lambda: 10**8)
    with pytest.raises(InputError, match=r"exporting this model takes about .* GB of memory, and 0\.1 GB are free"):
        plan(recipe)


@pytest.mark.parametrize(("name", "remedy"), [("sd15", "sd15"), ("mine", ".*/model")])
def test_random_weights_are_no_checkpoint(tiny_recipe: Path, tmp_path: Path, name: str, remedy: str) -> None:
    model = shutil.copytree(tiny_recipe.parent / "model", tmp_path / "model")
    marker = RandomWeights(name=name, seed=0, dtype="fp16", architecture="0" * 64, versions={})
    (model / MARKER).write_text(marker.model_dump_json())
    recipe = load_recipe(tiny_recipe)
    checkpoint = recipe.checkpoint.model_copy(update={"path": str(model)})
    recipe = recipe.model_copy(update={"output": tmp_path / "out", "checkpoint": checkpoint})
    for run in (plan, build):
        with pytest.raises(InputError, match=rf"carries random weights \({name}\), .*: pass --random-weights {remedy}$"):
            run(recipe)
    assert not recipe.output.exists()
