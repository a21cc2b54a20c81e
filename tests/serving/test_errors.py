"""What is shipped imports from `nemo_edge.serving` alone, so that a repository outlives a change of the rooms."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from nemo_edge.serving import errors, models
from nemo_edge.system.errors import InputError, NemoEdgeError

SHIPPED = [path for path in Path(models.__file__).parent.glob("*.py") if path.name != "__init__.py"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_model_names_serving_only(path: Path) -> None:
    names = {node.module for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.module}
    own = {name for name in names if name.startswith("nemo_edge")}
    assert own
    assert all(name.startswith("nemo_edge.serving.") for name in own)


def test_its_errors_are_the_library_s() -> None:
    assert (errors.InputError, errors.NemoEdgeError) == (InputError, NemoEdgeError)
