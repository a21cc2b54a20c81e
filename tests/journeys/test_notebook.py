"""The notebook runs from its first cell to its last in a kernel of its own, and says then what it says as it is kept."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "notebooks" / "first.ipynb"
SETTLED = ("nemo_edge.detect(", "nemo_edge.localize(", "print(result.manifest)")
"""Cells that say the same whenever and wherever they are run."""


def cells_of(notebook: Mapping[str, Any], kind: str) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source_of(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def said_by(notebook: Mapping[str, Any], part: str) -> str:
    """What the one cell that has a text in it wrote to its standard output."""
    [cell] = [cell for cell in cells_of(notebook, "code") if part in source_of(cell)]
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")


def shown_by(notebook: Mapping[str, Any], kind: str) -> list[Any]:
    """What the cells show of a type, as text/html."""
    outputs = [output for cell in cells_of(notebook, "code") for output in cell["outputs"]]
    return [output["data"][kind] for output in outputs if kind in output.get("data", {})]


@pytest.fixture(scope="module")
def kept() -> Any:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a clone has the notebook, with what the notebook reads; its commands and its kernel are those of this environment."""
    folder = tmp_path / "docs" / "notebooks"
    folder.mkdir(parents=True)
    for name in ("nemo_edge", "calib"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return folder


def test_it_is_kept_small_with_what_came_out(kept: Any) -> None:
    assert NOTEBOOK.stat().st_size <= 300_000
    code = cells_of(kept, "code")
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    assert [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"] == []
    assert re.findall(r"/(?:home|root|Users|work)/\S+", json.dumps(kept["cells"])) == []
    assert len(shown_by(kept, "image/png")) == 2


def test_its_links_lead_somewhere(kept: Any) -> None:
    links = [link for cell in cells_of(kept, "markdown") for link in re.findall(r"\]\((?!https?:)([^)#]+)", source_of(cell))]
    assert links
    assert [link for link in links if not (NOTEBOOK.parent / link).is_file()] == []


def test_it_runs_from_a_checkpoint_to_a_verdict(kept: Any, place: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in cells_of(notebook, "code"):
        cell["outputs"] = []
    nbclient.NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(place)}}).execute()
    for part in SETTLED:
        assert said_by(notebook, part) == said_by(kept, part) != ""
    assert "not memorized" in said_by(notebook, "nemo_edge.detect(")
    [html] = [shown for shown in shown_by(notebook, "text/html") if "replication.masked" in shown]
    assert "no gate failed" in html
    assert html.count("<img ") == 3
    assert "72 files, all as the manifest says" in said_by(notebook, "nemo-edge verify")
    assert (place / "first" / "bundle" / "report" / "index.html").is_file()
