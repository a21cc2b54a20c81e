"""The pages and schemas of the reference are what the code says, and say so when they are not."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from nemo_edge.recipe.schema import recipe_schema, settings_of

ROOT = Path(__file__).parents[1]


def check(script: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(script), *options], cwd=ROOT, capture_output=True, text=True, check=False)


def test_all_are_up_to_date() -> None:
    done = check(ROOT / "docs" / "reference.py", "--check")
    assert done.returncode == 0, done.stderr


def test_a_stale_one_is_refused_and_written_anew(tmp_path: Path) -> None:
    name = "help.md"
    for each in ("reference.py", "help.md", "recipe.md", "recipe.schema.json", "report.schema.json"):
        shutil.copy(ROOT / "docs" / each, tmp_path)
    stale = tmp_path / name
    stale.write_bytes(stale.read_bytes()[:-20])
    done = check(tmp_path / "reference.py", "--check")
    assert done.returncode == 1
    assert f"docs/{name} is not what the code says; run `python docs/reference.py`" in done.stderr
    assert check(tmp_path / "reference.py").returncode == 0
    assert stale.read_bytes() == (ROOT / "docs" / name).read_bytes()


def test_every_setting_has_its_row_in_its_table() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    found, table = [], ""
    for line in page.splitlines():
        heading, row = re.match(r"## `\[+([\w.]+)\]+`", line), re.match(r"\| `(\w+)` \| .+ \| .* \| (.+) \|$", line)
        table = heading.group(1) if heading else table
        found += [(table, row.group(1))] if row else []
    settings = [s for s in settings_of(recipe_schema()) if "$ref" not in s.schema and "$ref" not in s.schema.get("items", {})]
    assert sorted(found) == sorted((s.table, s.name) for s in settings)
