"""The wheel: what is built from the sources has all that a command needs, installed anywhere, without the sources beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPE = """
name = "installed"
output = "out"
[checkpoint]
path = "{demo}/checkpoint"
[prompts]
memorized = "{demo}/prompts/memorized.csv"
general = "general.txt"
[calibration]
prompts = 5
[fidelity]
general_prompts = 1
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("nemo_edge-*.whl")
    return found


def test_the_wheel_has_the_files_of_the_package_but_the_demos_and_no_others(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "nemo_edge"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split("\n")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {name for name in tracked if name and not name.startswith("nemo_edge/demo/")}
    assert sum(each.file_size for each in zipfile.ZipFile(wheel).infolist()) < 5e6


def test_an_installed_wheel_plans_a_build(wheel: Path, tmp_path: Path) -> None:
    """From a folder that is not the sources', of which only the demo's checkpoint and prompts are taken."""
    site = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    (tmp_path / "general.txt").write_text("".join(f"a {thing} on a table\n" for thing in ("cup", "hat", "pear", "shoe", "key", "plum")))
    (tmp_path / "recipe.toml").write_text(RECIPE.format(demo=ROOT / "nemo_edge" / "demo"))
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200"}
    where = [sys.executable, "-c", "import nemo_edge; print(nemo_edge.__file__)"]
    told = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()) == site / "nemo_edge" / "__init__.py"
    command = [sys.executable, "-m", "nemo_edge.cli", "build", "recipe.toml", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "localize" in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
