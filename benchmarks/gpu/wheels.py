"""The wheels that travel: what our wheel needs beyond what the bare machine has, resolved and downloaded by pip. It packs nothing."""

from __future__ import annotations

__all__ = ["GROUPS", "Pip", "Problem", "gather"]

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
GROUPS = {
    "core": "nemo-edge, for all but what follows",
    "onnxruntime": "ONNX Runtime with CUDA",
    "tensorrt-rtx": "TensorRT for RTX",
    "tensorrt": "TensorRT",
}
"""What each group brings, in the order of use. ONNX Runtime finds the libraries of CUDA that torch brought and loaded."""
OPTIONAL = {"tensorrt-rtx": "tensorrt-rtx-cu13", "tensorrt": "tensorrt-cu13"}
"""Group → the package that stands for it, which needs its own -libs and -bindings."""
PLATFORMS = ["linux", "manylinux1", "manylinux2010", "manylinux2014", *(f"manylinux_2_{minor}" for minor in range(5, 36))]


class Problem(Exception):
    """What went wrong and the remedy, in one line."""


class Absent(Problem):
    """The index has no such wheel."""


class Pip:
    """pip for the Python of the bare machine: that Python's own where it is here, else the one that runs this script."""

    def __init__(self, python: str, work: Path) -> None:
        own = sys.version_info[:2] == tuple(map(int, python.split(".")))
        found = None if own else shutil.which(f"python{python}")
        works = found and not subprocess.run([found, "-m", "pip", "--version"], capture_output=True).returncode
        self.python, self.work, self.built = (str(found) if works else sys.executable), work, work / "built"
        self.target = ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", f"--find-links={self.built}"]
        self.target += [f"--platform={platform}_x86_64" for platform in PLATFORMS]
        self.built.mkdir()

    def run(self, *arguments: str | Path) -> None:
        done = subprocess.run([self.python, "-m", "pip", *map(str, arguments)], capture_output=True, text=True)
        if done.returncode == 0:
            return
        if "Retrying (Retry" in done.stderr:
            raise Problem("the package index cannot be reached: connect to the network, or name one in PIP_INDEX_URL")
        if "requires a different Python" in done.stderr:
            raise Problem("this pip cannot resolve for another Python: run prepare.py with that Python, or `pip install --upgrade pip`")
        errors = re.findall(r"^ERROR: (.*)$", done.stderr, re.MULTILINE) or done.stderr.strip().splitlines()[-1:]
        kind = Absent if "No matching distribution found" in done.stderr else Problem
        told = errors[0] if errors else f"exit code {done.returncode}"
        raise kind(f"pip {arguments[0]} failed: {told}; change --bare or pyproject.toml")

    def build(self, what: str | Path) -> None:
        """Build a wheel that the index does not have as one."""
        self.run("wheel", "--quiet", "--no-deps", "--wheel-dir", self.built, what)

    def resolve(self, *requirements: str | Path) -> dict[str, dict[str, Any]]:
        """Return what would be installed: normal name → version and sha256."""
        report = self.work / "report.json"
        only: list[str | Path] = ["--quiet", "--dry-run", "--ignore-installed", "--target", self.work, "--report", report]
        self.run("install", *only, *self.target, *requirements)
        found = {}
        for item in json.loads(report.read_text())["install"]:
            name, version = normal(item["metadata"]["name"]), item["metadata"]["version"]
            found[name] = {"version": version, "sha256": item["download_info"]["archive_info"]["hashes"]["sha256"]}
        return found

    def download(self, packages: dict[str, dict[str, Any]]) -> list[Path]:
        """Return the wheels of these packages, whose hashes are those that were resolved."""
        folder, listed = Path(tempfile.mkdtemp(dir=self.work)), self.work / "requirements.txt"
        listed.write_text("".join(f"{n}=={p['version']} --hash=sha256:{p['sha256']}\n" for n, p in packages.items()))
        self.run("download", "--quiet", "--no-deps", "--dest", folder, *self.target, "-r", listed)
        return sorted(folder.glob("*.whl"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def gather(pip: Pip, bare_file: Path) -> tuple[dict[str, dict[str, dict[str, Any]]], dict[str, str]]:
    """Return the packages that travel, by group, and what the bare machine has."""
    bare = {name: package["version"] for name, package in sorted(pip.resolve("-r", bare_file).items())}
    constraints = pip.work / "constraints.txt"
    constraints.write_text("".join(f"{name}=={version}\n" for name, version in bare.items()))
    pip.build(ROOT)
    wanted: list[str | Path] = [f"{wheel}[build]" for wheel in pip.built.glob("nemo_edge-*.whl")]
    for package in OPTIONAL.values():
        try:
            version = pip.resolve(f"{package}-libs>=1", f"{package}-bindings>=1")[f"{package}-libs"]["version"]
        except Absent:
            continue
        pip.build(f"{package}=={version}")
        wanted.append(f"{package}=={version}")
    travels: dict[str, dict[str, dict[str, Any]]] = {group: {} for group in GROUPS}
    for name, found in sorted(pip.resolve("-c", constraints, *wanted).items()):
        if name not in bare:
            travels[next((g for g in ("onnxruntime", *OPTIONAL) if name.startswith(g)), "core")][name] = found
    return travels, bare
