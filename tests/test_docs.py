"""README and docs: short enough, built without a warning, and their commands are ones that there are."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from nemo_edge.cli.main import app
from nemo_edge.cli.panels import EXAMPLES
from nemo_edge.measure.advice import ADVICE

ROOT = Path(__file__).parents[1]
README, DOCS = ROOT / "README.md", ROOT / "docs"
PAGES = (README, *sorted(DOCS.glob("*.md")))
COMMAND = re.compile(r"(?:^|[\s|`'])(?:\.venv/bin/)?nemo-edge ((?:[a-z]\w*)[^`\n#|&]*)")
GROUP: Any = typer.main.get_command(app)


def commands(text: str) -> list[list[str]]:
    """The words of each command of ours in a page, lines that go on put together."""
    lines = re.sub(r"\\\n\s*", " ", text)
    found = []
    for said in COMMAND.findall(lines):
        try:
            found.append(shlex.split(said))
        except ValueError:  # a quote that is closed elsewhere: the words before it will do
            found.append(said.split())
    return found


def options(name: str) -> set[str]:
    return {option for parameter in GROUP.commands[name].params for option in parameter.opts} | {"--help", "-h", "--debug"}


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_are_there_with_their_options(page: Path) -> None:
    for name, *words in commands(page.read_text(encoding="utf-8")):
        if name not in GROUP.commands:
            assert page.name != "commands.md", name
            continue  # a word of a sentence
        for word in words:
            if re.match(r"--?[a-z]", word):
                assert word.split("=")[0] in options(name), f"{page.name}: nemo-edge {name} has no {word}"


def test_some_commands_are_found() -> None:
    found = commands(
        "    nemo-edge build a.toml --dry-run\nand `nemo-edge ship B --to R`\n    .venv/bin/nemo-edge generate B 'a b' \\\n    --out x\n"
    )
    assert found == [["build", "a.toml", "--dry-run"], ["ship", "B", "--to", "R"], ["generate", "B", "a b", "--out", "x"]]


def test_every_command_is_on_the_page_of_commands() -> None:
    page = (DOCS / "commands.md").read_text(encoding="utf-8")
    absent = [name for examples in EXAMPLES.values() for name in examples if f"`nemo-edge {name} " not in page]
    assert absent == []


def test_every_gate_is_on_its_page() -> None:
    page = (DOCS / "gates.md").read_text(encoding="utf-8")
    assert [name for name in ADVICE if f"| `{name}` |" not in page] == []


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (DOCS / "index.md").read_text(encoding="utf-8").splitlines()
    assert [page.stem for page in DOCS.glob("*.md") if page.stem not in (*contents, "index")] == []


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text(encoding="utf-8")):
        assert (ROOT / link).is_file(), link


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "benchmarks.html").is_file()
