"""The house: imports point one way, importing is light, and the command line answers at once."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nemo_edge

PACKAGE = Path(nemo_edge.__file__).parent
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "diffusers", "transformers")

NAMED = re.compile(r'"(nemo_edge(?:\.[a-z_]+){2,})"')
"""A name in a string: what a process of its own is told to import, or calls."""


def modules() -> list[Path]:
    return [path for path in PACKAGE.rglob("*.py") if path.name not in ("__init__.py", "__main__.py")]


def lint_imports(config: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--config", str(config), "--no-cache"]
    return subprocess.run(command, cwd=config.parent, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": "."})


@pytest.mark.parametrize(
    ("room", "line", "broken"),
    [
        ("system/files.py", "import nemo_edge.recipe.settings", "Rooms import only from rooms below them"),
        ("recipe/targets.py", "import nemo_edge.recipe.recipe", "Modules of a room import one another in one direction"),
        ("release/build.py", "import nemo_edge.localization._prefix", "What begins with an underscore is its room's own"),
    ],
)
def test_the_contract_sees_an_arrow_that_climbs(tmp_path: Path, room: str, line: str, broken: str) -> None:
    shutil.copytree(PACKAGE, tmp_path / "nemo_edge", ignore=shutil.ignore_patterns("checkpoint", "prompts", "__pycache__"))
    (tmp_path / "nemo_edge" / "localization" / "synonyms.txt").touch()
    shutil.copy(PACKAGE.parent / "pyproject.toml", tmp_path)
    assert lint_imports(tmp_path / "pyproject.toml").returncode == 0
    path = tmp_path / "nemo_edge" / room
    path.write_text(path.read_text() + f"\n{line}\n")
    done = lint_imports(tmp_path / "pyproject.toml")
    assert done.returncode == 1
    assert f"{broken} BROKEN" in done.stdout


def test_names_in_strings_are_there() -> None:
    """What is named by text, so that the asking process need not hold the libraries, is not found by the contract."""
    named = {name for path in modules() for name in NAMED.findall(path.read_text())}
    assert "nemo_edge.export.parts.export_part" in named
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert importlib.util.find_spec(name if (PACKAGE.parent / f"{name.replace('.', '/')}.py").is_file() else module) is not None
        if importlib.util.find_spec(module).submodule_search_locations is None:  # type: ignore[union-attr]
            assert hasattr(importlib.import_module(module), attribute), name


def test_doors_are_light_and_short() -> None:
    for door in PACKAGE.glob("*/__init__.py"):
        tree = ast.parse(door.read_text())
        assert len((ast.get_docstring(tree) or "").splitlines()) <= 15, door
        named = set(re.findall(r"`(_?[a-z_]+)`", ast.get_docstring(tree) or ""))
        own = {p.stem for p in door.parent.iterdir() if p.suffix == ".py" or (p / "__init__.py").is_file()} - {"__init__", "__main__"}
        assert own <= named or door.parent.name in ("demo", "serving"), f"{door.parent.name}: {sorted(own - named)} are not named"


ELSEWHERE = """
import builtins, importlib, io, os, sys
modules = sys.argv[1:]
for name in modules:  # what others import is theirs
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "nemo_edge"]:
    del sys.modules[name]
sys.modules.update(dict.fromkeys(("fcntl", "grp", "pwd", "resource", "termios"), None))
del os.sched_getaffinity
opened = io.open
def without_proc(file, *arguments, **more):
    if str(file).startswith("/proc/"):
        raise FileNotFoundError(file)
    return opened(file, *arguments, **more)
io.open = builtins.open = without_proc
for name in modules:
    importlib.import_module(name)
from nemo_edge.system.environment import machine
print(machine().cores)
"""


def test_every_module_is_imported_where_there_is_neither_fcntl_nor_resource_nor_proc() -> None:
    """As on Windows, as far as that can be told from here."""
    served = PACKAGE / "serving" / "models"  # what Triton opens, with a module that is there alone
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in modules() if path.parent != served]
    done = subprocess.run([sys.executable, "-c", ELSEWHERE, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[-1] == str(os.cpu_count())


def test_importing_the_package_is_light() -> None:
    code = f"import nemo_edge, nemo_edge.cli.main, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "module", ["nemo_edge.cli.datasheet", "nemo_edge.sampling.generate", "nemo_edge.measure.profile", "nemo_edge.serving.painter"]
)
def test_what_a_finished_bundle_needs_is_imported_without_pytorch(module: str) -> None:
    program = f"import sys, {module}; print({{'torch', 'diffusers', 'transformers'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_help_costs_little_more_than_python_itself() -> None:
    """`--help` beside a bare interpreter that imports typer, the median of five: a ratio, not a time."""

    def median(*arguments: str) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
            times.append(time.perf_counter() - started)
        return statistics.median(times)

    assert median("-m", "nemo_edge.cli", "--help") < 3 * median("-c", "import typer, typer.main")


def test_every_public_name_is_exported() -> None:
    for path in (path for path in modules() if path.parent.name != "demo"):
        tree = ast.parse(path.read_text())
        exported = next(
            (ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"),
            None,
        )
        assert exported is not None, f"{path.name} has no __all__"
        defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")}
        assert defined <= set(exported) | {"app"} or path.name == "main.py", f"{path.name}: {sorted(defined - set(exported))}"


def test_the_tests_mirror_the_package() -> None:
    tests = Path(__file__).parent
    tested = {p.relative_to(PACKAGE).with_name(p.name.removeprefix("_")) for p in PACKAGE.rglob("*.py") if not p.name.startswith("__")}
    found = {p.relative_to(tests).with_name(p.name.removeprefix("test_")) for p in tests.rglob("test_*.py")}
    mirror = {path for path in found if path.parts[0] not in ("journeys", "benchmarks")}
    own = ("calib.py", "claims.py", "docs.py", "face.py", "imports.py", "lock.py", "recipes.py", "reference.py", "rooms.py", "where.py")
    house = {Path(name) for name in own}
    checkpoints = {Path("demo/demo.py"), Path("demo/repeated/repeated.py")}
    assert mirror - tested == {*house, *checkpoints, Path("backends/tensorrt/gpu.py")}  # and a GPU's
    assert tested - mirror == set()
