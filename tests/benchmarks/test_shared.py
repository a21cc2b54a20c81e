"""What benchmarks share, and that they are where the pages say."""

from __future__ import annotations

import ast
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import shared
from nemo_edge.recipe.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PAGES = ("CONTRIBUTING.md", "README.md", "Makefile", *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("benchmarks/**/*.py"))))
COMMANDS = {(page, name) for page in PAGES for name in re.findall(r"-m (benchmarks(?:\.\w+)+)", (ROOT / page).read_text(encoding="utf-8"))}


@pytest.mark.parametrize(("page", "name"), sorted(COMMANDS))
def test_what_a_page_starts_is_there(page: str, name: str) -> None:
    spec = find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    assert 'if __name__ == "__main__":' in Path(spec.origin).read_text(encoding="utf-8")


def test_every_script_is_on_the_page() -> None:
    scripts = {p for p in ROOT.glob("benchmarks/**/*.py") if 'if __name__ == "__main__":' in p.read_text(encoding="utf-8")}
    named = {name for page, name in COMMANDS if page == "CONTRIBUTING.md"}
    on_its_own = {ROOT / "benchmarks" / "gpu" / "join.py"}  # it needs Python alone, and is started as a file
    assert {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in scripts - on_its_own} == named


def test_the_door_of_a_folder_names_its_modules() -> None:
    for door in (ROOT / "benchmarks").rglob("__init__.py"):
        named = set(re.findall(r"`(\w+)/?`", ast.get_docstring(ast.parse(door.read_text(encoding="utf-8"))) or ""))
        own = {p.stem for p in door.parent.glob("*.py")} | {p.parent.name for p in door.parent.glob("*/__init__.py")}
        assert own - {"__init__"} <= named, door


def test_results_come_back_as_they_were_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "RESULTS", tmp_path / "results")
    assert shared.kept("new") == {}
    shared.keep("new", {"caption": "naïve", "times": [1.5]})
    assert shared.kept("new") == {"caption": "naïve", "times": [1.5]}
    assert (tmp_path / "results" / "new.json").read_text(encoding="utf-8").splitlines()[1] == ' "caption": "naïve",'


def test_prompts_are_those_of_the_demos_recipe() -> None:
    recipe = load_recipe(shared.DEMO_RECIPE)
    assert recipe.calibration.prompts == shared.CALIBRATED
    assert len(shared.memorized()) == 16
    assert len(shared.general()) > shared.CALIBRATED
    assert Path(recipe.prompts.general).resolve() == ROOT / "calib" / "demo_general.txt"
    assert Path(recipe.output).resolve() == shared.DEMO_BUNDLE
