"""The house: imports point one way, importing is light, and the command line answers at once."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nemo_edge

PACKAGE = Path(nemo_edge.__file__).parent
HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "diffusers", "transformers")

LAYERS = {
    "errors": 0,
    "bounds": 1,
    "environment": 1,
    "files": 1,
    "exits": 2,
    "progress": 1,
    "component": 1,
    "compatibility": 2,
    "graphs": 2,
    "neurons": 2,
    "masks": 3,
    "targets": 1,
    "plans": 2,
    "fit": 3,
    "engines": 4,
    "settings": 1,
    "recipe": 2,
    "prompts": 2,
    "configuration": 2,
    "similarity": 2,
    "architectures": 3,
    "backends": 3,
    "bundle": 3,
    "forwards": 1,
    "checkpoint": 3,
    "memory": 1,
    "footprint": 3,
    "latency": 3,
    "probes": 4,
    "random_weights": 4,
    "valueweights": 3,
    "surgery": 4,
    "sampling": 4,
    "divergence": 4,
    "fidelity": 5,
    "memorization": 5,
    "multiscale": 2,
    "prefix": 2,
    "searches": 3,
    "trials": 6,
    "pipelines": 5,
    "replication": 5,
    "readiness": 4,
    "ingredients": 3,
    "stand": 6,
    "verification": 6,
    "agreement": 1,
    "apart": 3,
    "production": 5,
    "parts": 8,
    "preload": 9,
    "bench": 7,
    "calibration": 6,
    "compilation": 1,
    "detection": 6,
    "detectors": 7,
    "roc": 2,
    "decisions": 4,
    "journal": 2,
    "clusters": 3,
    "paraphrases": 1,
    "refinement": 8,
    "groups": 9,
    "localization": 7,
    "export": 7,
    "mitigation": 8,
    "comparison": 9,
    "examination": 9,
    "gates": 10,
    "report": 10,
    "stages": 10,
    "doctor": 11,
    "studio": 11,
    "substitutes": 5,
    "triggers": 3,
    "policies": 4,
    "bundlepolicies": 10,
    "serving": 12,
    "dropin": 12,
    "enginepipeline": 6,
    "review": 11,
    "preflight": 10,
    "build": 11,
    "remeasure": 12,
    "refit": 7,
    "rebake": 13,
    "console": 12,
    "findings": 13,
    "datasheet": 13,
    "options": 13,
    "cli_bundle": 14,
    "cli_serving": 14,
    "cli": 15,
}
"""A module imports only from layers below its own; inside `backends`, `report` and `demo` from its own folder too."""


def modules() -> list[tuple[str, Path]]:
    found = [(p.relative_to(PACKAGE).with_suffix("").parts, p) for p in PACKAGE.rglob("*.py")]
    return [(parts[0], path) for parts, path in found if parts[0] not in ("__init__", "demo")]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "nemo_edge":
            parts = node.module.split(".")[1:]
            names |= {parts[0]} if parts else {alias.name for alias in node.names if alias.name != "__version__"}
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("nemo_edge.")}
    return names


@pytest.mark.parametrize(("module", "path"), modules(), ids=lambda v: v.name if isinstance(v, Path) else v)
def test_imports_point_down(module: str, path: Path) -> None:
    upward = {name for name in imported(path) - {module} if LAYERS[name] >= LAYERS[module]}
    assert not upward, f"{path.name} (layer {LAYERS[module]}) imports {sorted(upward)}"


def test_every_module_has_a_layer() -> None:
    assert {module for module, _ in modules()} == set(LAYERS)


def test_importing_the_package_is_light() -> None:
    code = f"import nemo_edge, nemo_edge.cli.main, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
    for _, path in modules():
        tree = ast.parse(path.read_text())
        exported = next(
            (ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"),
            None,
        )
        assert exported is not None, f"{path.name} has no __all__"
        defined = {n.name for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and not n.name.startswith("_")}
        assert defined <= set(exported) | {"app"} or path.name == "cli.py", f"{path.name}: {sorted(defined - set(exported))}"


def test_the_tests_mirror_the_package() -> None:
    package, tests = Path(nemo_edge.__file__).parent, Path(__file__).parent
    tested = {p.relative_to(package) for p in package.rglob("*.py") if not p.name.startswith("__")}
    mirror = {p.relative_to(tests).with_name(p.name.removeprefix("test_")) for p in tests.rglob("test_*.py")}
    house = {Path("imports.py"), Path("foreign_clients.py"), Path("demo/demo.py")}  # imports, other tools, and the checkpoint itself
    house |= {
        Path("readme.py"),
        Path("where.py"),
        Path("random_build.py"),
        Path("traces.py"),
        Path("benchmarks/gpu_kit.py"),
        Path("benchmarks/gpu_run.py"),
    }
    assert mirror - tested == house
    assert tested - mirror == set()
