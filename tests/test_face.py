"""The public face: what `import nemo_edge` offers, with which types, and that the example of each function runs as it stands."""

from __future__ import annotations

import ast
import doctest
import inspect
import pydoc
import re
import rlcompleter
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from conftest import TINY_RECIPE
from diffusers import StableDiffusionPipeline

import nemo_edge
from nemo_edge import demo
from nemo_edge.localization.calibration import calibrate
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.components import UNET_FOLDERS
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.recipe.targets import EngineSettings
from nemo_edge.system import errors

PACKAGE = Path(nemo_edge.__file__).parent
FUNCTIONS = ("build", "detect", "load_pipeline", "load_recipe", "load_unet", "localize", "open_bundle", "verify")
GENERAL = ("a mushroom", "whale carrot on a pink background", "a banana on a black background", "a whale", "doughnut pig")


@pytest.fixture
def place(tiny_recipe: Path, shippable: Path, demo_checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of an example, with what examples name: a recipe with its inputs, its bundle, the demo and statistics of it."""
    for name in ("model", "memorized.csv", "general.txt", ".out.build"):
        source = tiny_recipe.parent / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    (tmp_path / "recipe.toml").write_text(TINY_RECIPE + "[gates]\nmemorization_score = false\nschedule_floor = false\n")
    shutil.copytree(shippable, tmp_path / "out")
    (tmp_path / "demo").symlink_to(demo.CHECKPOINT)
    statistics = calibrate(demo_checkpoint, GENERAL, LocalizationSettings(), with_threshold=False)
    statistics.save(tmp_path / "statistics.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def examples(name: str) -> doctest.DocTest:
    """The examples in the docstring of a public function."""
    names = {"nemo_edge": nemo_edge, "StableDiffusionPipeline": StableDiffusionPipeline}
    return doctest.DocTestParser().get_doctest(getattr(nemo_edge, name).__doc__, names, name, None, 0)


def run(test: doctest.DocTest) -> tuple[int, str]:
    """How many lines of an example do something else than they say, and what."""
    said: list[str] = []
    found = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    return found.failed, "".join(said)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_runs_as_it_stands(name: str, place: Path) -> None:
    test = examples(name)
    assert f"nemo_edge.{name}(" in "".join(example.source for example in test.examples)
    assert any(example.want for example in test.examples), "an example says what comes out"
    assert run(test) == (0, "")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("'tiny'", "'large'"), "Expected:\n    ('large', 'paper')\nGot:\n    ('tiny', 'paper')"),
        (("recipe.localization", "recipe.location"), "AttributeError: 'Recipe' object has no attribute 'location'"),
        (("recipe.toml", "none.toml"), "recipe none.toml does not exist"),
    ],
)
def test_an_example_that_is_wrong_is_found(change: tuple[str, str], told: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(nemo_edge.load_recipe.__doc__)
    assert text.count(change[0]) == 1
    monkeypatch.setattr(nemo_edge.load_recipe, "__doc__", text.replace(*change))
    failed, said = run(examples("load_recipe"))
    assert failed > 0
    assert told in said


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_function_has_its_contract_and_a_note_of_its_types(name: str) -> None:
    function = getattr(nemo_edge, name)
    assert (function.__name__, function.__module__) == (name, nemo_edge._MODULES[name])
    assert "str | PathLike[str]" in function.__annotations__[next(iter(function.__annotations__))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_each_docstring_has_every_parameter_what_comes_out_what_is_raised_and_an_example(name: str) -> None:
    function = getattr(nemo_edge, name)
    parts = re.split(r"(?m)^(Args|Returns|Raises|Example):$", inspect.cleandoc(function.__doc__))
    assert parts[1::2] == ["Args", "Returns", "Raises", "Example"]
    arguments, returns, raises, example = parts[2::2]
    parameters = inspect.signature(function).parameters.values()
    told = re.findall(r"(?m)^    ([*\w]+): \S", arguments)
    assert told == [f"**{each.name}" if each.kind is each.VAR_KEYWORD else each.name for each in parameters]
    assert returns.strip()
    for error in re.findall(r"(?m)^    (\w+): \S", raises):
        assert issubclass(getattr(errors, error), errors.NemoEdgeError)
    assert raises.strip()
    assert example.strip().startswith(">>> ")


def test_options_of_fixed_words_have_them_as_their_type() -> None:
    """What a type checker and an editor know of them is what is taken."""
    for name in ("load_pipeline", "load_unet"):
        hints = get_type_hints(getattr(nemo_edge, name))
        assert get_args(get_args(hints["variant"])[0]) == tuple(UNET_FOLDERS)
        assert get_args(get_args(hints["backend"])[0]) == get_args(EngineSettings.model_fields["backend"].annotation)


def test_the_help_and_completion_of_the_package_show_its_functions() -> None:
    shown = pydoc.render_doc(nemo_edge, renderer=pydoc.plaintext)
    functions = shown.partition("\nFUNCTIONS\n")[2]
    assert [name for name in re.findall(r"(?m)^    (\w+)\(", functions) if not name.startswith("__")] == sorted(FUNCTIONS)
    words = rlcompleter.Completer({"nemo_edge": nemo_edge}).attr_matches("nemo_edge.")
    completed = {word.removeprefix("nemo_edge.").partition("(")[0] for word in words}
    assert set(FUNCTIONS) <= completed


def test_type_checkers_see_what_is_imported_when_it_is_asked_for() -> None:
    """The imports that only type checkers read bring the same names from the same modules."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == nemo_edge._MODULES
    assert (PACKAGE / "py.typed").read_bytes() == b""


def test_the_names_are_there_before_anything_is_imported() -> None:
    code = "import nemo_edge, sys; print(dir(nemo_edge)); print([m for m in sys.modules if m.startswith('nemo_edge.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, imported = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert set(nemo_edge.__all__) == {"__version__", *FUNCTIONS} == {name for name in names if name in FUNCTIONS or name == "__version__"}
    assert imported == []


def test_a_name_that_is_not_there_is_said() -> None:
    with pytest.raises(AttributeError, match="module 'nemo_edge' has no attribute 'biuld'"):
        _ = nemo_edge.biuld


def test_paths_are_taken_as_they_are(tiny_recipe: Path, tiny_bundle: Path) -> None:
    assert nemo_edge.load_recipe(tiny_recipe) == nemo_edge.load_recipe(str(tiny_recipe))
    assert nemo_edge.open_bundle(tiny_bundle) == nemo_edge.open_bundle(str(tiny_bundle))
    assert nemo_edge.verify(tiny_bundle) == nemo_edge.verify(str(tiny_bundle))
    assert nemo_edge.verify(str(tiny_bundle)).passed
    built = nemo_edge.build(tiny_recipe)
    assert built == nemo_edge.build(str(tiny_recipe)) == nemo_edge.build(nemo_edge.load_recipe(tiny_recipe))
    assert built.skipped
