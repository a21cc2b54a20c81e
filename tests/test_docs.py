"""README and docs: short enough, built without a warning, and their commands are ones that there are."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from jsonschema import Draft7Validator

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


@pytest.mark.parametrize(("title", "schema"), [("GitHub Actions", "github-workflows"), ("GitLab", "gitlab-ci")])
def test_a_pipeline_is_one_by_its_published_schema(title: str, schema: str) -> None:
    """Those of SchemaStore, as check-jsonschema carries them."""
    pytest.importorskip("check_jsonschema")
    page = (DOCS / "pipelines.md").read_text(encoding="utf-8").partition(f"## {title}\n")[2]
    pipeline = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])
    triggers = {"on": pipeline.pop(True)} if True in pipeline else {}  # YAML 1.1 takes the word for a boolean
    published = resources.files("check_jsonschema") / "builtin_schemas" / "vendor" / f"{schema}.json"
    validator = Draft7Validator(json.loads(published.read_text(encoding="utf-8")))
    assert [error.message for error in validator.iter_errors({**pipeline, **triggers})] == []
    assert not validator.is_valid({**pipeline, **triggers, "jobs": 3, "release": 3})


def test_a_pipeline_builds_judges_signs_and_keeps() -> None:
    page = (DOCS / "pipelines.md").read_text(encoding="utf-8")
    for block in re.findall(r"(?s)```yaml\n(.*?)```", page):
        assert [name for name, *_ in commands(block)] == ["build", "sign", "verify"]
        assert "engines/out/demo" in block.partition("artifact")[2]


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "benchmarks.html").is_file()
