"""What drawing with a finished bundle takes without PyTorch: the size of the environment, and the time to the first picture.

    python -m benchmarks.cpu.standalone [--bundle engines/out/demo] [--rounds 5]

Installs nemo-edge with each extra that draws into an environment of its own, and has `nemo-edge generate` draw a picture there and in this
one, in turns, each time in a new process. Writes `benchmarks/results/standalone.json`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.shared import DEMO_BUNDLE, ROOT, here, keep

PROMPT = "a whale on a pink background"
EXTRAS = {"run": "onnxruntime", "run-openvino": "openvino"}
"""The extras that draw, and what each draws with."""
NOT_OURS = ("pip", "setuptools", "_distutils_hack", "pkg_resources")
"""What `python -m venv` puts into an environment."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=DEMO_BUNDLE)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pythons = {extra: installed(extra, Path(folder) / extra) for extra in EXTRAS}
        pythons["build"] = Path(sys.executable)
        backends = {**EXTRAS, "build": "onnxruntime"}
        times: dict[str, list[float]] = {extra: [] for extra in pythons}
        for number in range(options.rounds + 1):
            for extra, python in pythons.items():
                taken = first_picture(python, options.bundle.resolve(), backends[extra], Path(folder) / f"{extra}.png")
                if number:  # the first fills the file system's cache
                    times[extra].append(taken)
        rows = [
            {
                "extra": extra,
                "backend": backends[extra],
                "size_mb": size_mb(python),
                "seconds": round(statistics.median(times[extra]), 2),
                "seconds_each": [round(taken, 2) for taken in times[extra]],
                "largest_difference": difference(Path(folder) / f"{extra}.png", Path(folder) / "build.png"),
            }
            for extra, python in pythons.items()
        ]
    for row in rows:
        print(row)
    keep("standalone", {**here(), "environments": rows})


def installed(extra: str, folder: Path) -> Path:
    """An environment with nemo-edge and one extra; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", f"{ROOT}[{extra}]"], check=True)
    return python


def first_picture(python: Path, bundle: Path, backend: str, out: Path) -> float:
    """Seconds from the command to its picture."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-m", "nemo_edge.cli", "generate", str(bundle), PROMPT, "--backend", backend, "--out", str(out)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=out.parent, env=environment)
    return time.perf_counter() - started


def size_mb(python: Path) -> int:
    """Size of an environment's packages, in MB."""
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    parts = [path for path in packages.iterdir() if not path.name.startswith(NOT_OURS)]
    files = [file for part in parts for file in ([part] if part.is_file() else part.rglob("*")) if file.is_file() and not file.is_symlink()]
    return round(sum(file.stat().st_size for file in files) / 1e6)


def difference(picture: Path, other: Path) -> int:
    """Most grey levels between two pictures."""
    first, second = (np.asarray(Image.open(path)).astype(int) for path in (picture, other))
    return int(np.abs(first - second).max())


if __name__ == "__main__":
    main()
