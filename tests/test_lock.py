"""The lock file: a version with hashes of all that pyproject.toml asks for, in the versions that it allows."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def asked(extra: str) -> Iterator[Requirement]:
    for text in PROJECT["optional-dependencies"][extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                yield from asked(other)
        else:
            yield requirement


def pins() -> dict[str, list[tuple[str, str]]]:
    """Of each package, its versions, of which one is for each platform, and what stands below them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in re.split(r"\n(?=[a-z0-9])", LOCK):
        match = re.match(r"([a-z0-9.-]+)(?:\[[a-z0-9,_-]+\])?==([^ ;\\]+)(.*)", entry, re.DOTALL)
        if match:
            found.setdefault(canonicalize_name(match[1]), []).append((match[2], match[3]))
    return found


def test_all_that_is_asked_for_is_pinned_to_a_version_that_is_allowed() -> None:
    pinned = pins()
    for requirement in (*map(Requirement, PROJECT["dependencies"]), *asked("dev")):
        versions = [version for version, _ in pinned.get(canonicalize_name(requirement.name), [])]
        assert versions, f"{requirement.name} is not in the lock: make lock"
        assert all(requirement.specifier.contains(version, prereleases=True) for version in versions), (str(requirement), versions)


def test_every_version_has_its_hashes_and_no_place_of_a_machine() -> None:
    assert len(pins()) > 100
    for name, versions in pins().items():
        assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", below) for _, below in versions), name
    assert "://" not in LOCK
    assert not re.search(r"(^|\s)/", LOCK)
