"""No text that people read claims what no build measures; what a bundle's own measurement says is tested with the report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READ = ("README.md", "CONTRIBUTING.md", "pyproject.toml", "docs/*.md", "engines/*.toml", "nemo_edge/**/*.py", "nemo_edge/**/*.html")
TEXTS = sorted(path for pattern in READ for path in ROOT.glob(pattern))
CLAIMS = re.compile(
    r"\b(?:leaks?|memor(?:y|ies))(?: that)? (?:is|are) (?:gone|removed|erased|forgotten)\b"
    r"|\b(?:nothing|nobody|no one)(?: at run time)? can (?:undo|bring (?:it|them) back)\b"
    r"|\bcan be shipped\b|\b(?:ready|safe) to ship\b|\b(?:cannot|can no longer) (?:leak|memorize)\b",
    re.IGNORECASE,
)


def claims(text: str) -> list[str]:
    """What is claimed in a text, whatever its lines."""
    return CLAIMS.findall(" ".join(text.split()))


def test_no_text_claims_what_was_not_measured() -> None:
    assert {"README.md", "verdict.html", "_verdict.py", "what-is-taken.md"} <= {path.name for path in TEXTS}
    found = {path.relative_to(ROOT).as_posix(): claims(path.read_text(encoding="utf-8")) for path in TEXTS}
    assert {place: said for place, said in found.items() if said} == {}


@pytest.mark.parametrize(
    "text", ["The leak is gone.", "a graph that nothing at run\ntime can undo", "This bundle can be shipped.", "a memory that is gone"]
)
def test_such_claims_are_found(text: str) -> None:
    assert claims(text)
