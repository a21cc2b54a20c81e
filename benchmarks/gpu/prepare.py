"""Gathers what the GPU benchmark needs on a machine without a network, as few and as small files as can be.

    python -m benchmarks.gpu.prepare --to benchmarks/gpu/kit

`bare.txt` says what that machine has. Our wheel and what it needs beyond that travel in groups, in the order of their use; each is a tar
compressed with xz of the unpacked wheels, cut into parts, and `kit.json` names every part with its sha256. `join.py` puts them together.
It runs on Linux x86_64, where the package index can be reached: markers of packages are read as pip reads them on this machine.
Neither torch nor anything that comes with it travels: CUDA itself is on the bare machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import lzma
import os
import re
import shutil
import signal
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from benchmarks.gpu.wheels import GROUPS, Pip, Problem, gather

FILTERS = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6}]
"""How xz compresses. Preset 1 takes half the time: one percent more bytes of ONNX Runtime, an eighth more of TensorRT for RTX."""


class Cut:
    """A file to write to that is cut into parts of at most `limit` bytes: `<stem>.01`, `<stem>.02`, …"""

    def __init__(self, folder: Path, stem: str, limit: int) -> None:
        self.folder, self.stem, self.limit = folder, stem, limit
        self.whole, self.size, self.parts = hashlib.sha256(), 0, list[dict[str, Any]]()

    def write(self, data: bytes) -> int:
        rest = memoryview(data)
        while rest:
            at = self.size % self.limit
            if at == 0:
                self.parts.append({"name": f"{self.stem}.{len(self.parts) + 1:02}", "bytes": 0, "sha256": hashlib.sha256()})
            part, piece = self.parts[-1], rest[: self.limit - at]
            with (self.folder / part["name"]).open("ab") as file:
                file.write(piece)
            part["sha256"].update(piece)
            self.whole.update(piece)
            part["bytes"] += len(piece)
            self.size += len(piece)
            rest = rest[len(piece) :]
        return len(data)

    def facts(self) -> dict[str, Any]:
        parts = [{**part, "sha256": part["sha256"].hexdigest()} for part in self.parts]
        return {"bytes": self.size, "sha256": self.whole.hexdigest(), "parts": parts}


def pack(wheels: list[Path], cut: Cut) -> None:
    """Write the content of wheels as it lies on PYTHONPATH: the same wheels give the same bytes, whenever and wherever."""
    with lzma.LZMAFile(cast(IO[bytes], cut), "w", filters=FILTERS) as compressed, tarfile.open(fileobj=compressed, mode="w") as tar:
        for wheel in sorted(wheels):
            with zipfile.ZipFile(wheel) as archive:
                for item in sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda i: i.filename):
                    entry = tarfile.TarInfo(re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", item.filename))
                    entry.size, entry.mode = item.file_size, 0o755 if item.external_attr >> 16 & 0o100 else 0o644
                    with archive.open(item) as content:
                        tar.addfile(entry, content)


def table(kit: dict[str, Any]) -> str:
    """The parts in the order of their use: with those of the first group alone the benchmark already runs."""
    lines, total = [f"{'part':26}{'MB':>7}{'sum':>8}  brings"], 0
    for group in kit["groups"]:
        for part in group["parts"]:
            total += part["bytes"]
            brings = GROUPS[group["name"]] if part is group["parts"][-1] else "…"
            lines.append(f"{part['name']:26}{part['bytes'] / 1e6:7.1f}{total / 1e6:8.1f}  {brings}"[:80])
    lines += [f"{name:26}{'':15}  {why}" for name, why in kit["absent"].items()]
    return "\n".join(lines)


def prepare(to: Path, part_mb: float, python: str, bare_file: Path) -> dict[str, Any]:
    """Make the kit beside `to`, then put it in its place. Groups that would be the same are taken from the kit that is there."""
    old = read(to) if (to / "kit.json").is_file() else {"groups": []}
    if to.exists() and not old["groups"] and any(to.iterdir()):
        raise Problem(f"{to} holds something else than a kit: give an empty folder with --to")
    to.parent.mkdir(parents=True, exist_ok=True)
    for left in to.parent.glob(f".{to.name}.making-*"):  # of a call that was killed
        shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.making-", dir=to.parent) as folder:
        work, new = Path(folder) / "work", Path(folder) / "kit"
        work.mkdir()
        new.mkdir()
        pip = Pip(python, work)
        say(f"looking for what is needed beyond {bare_file.name}")
        travels, bare = gather(pip, bare_file)
        groups = []
        for number, (name, packages) in enumerate(travels.items(), 1):
            facts = {"name": name, "packages": packages, "part_bytes": int(part_mb * 1e6)}
            if packages:
                same = (group for group in old["groups"] if {**group, **facts} == group and reused(group, to, new))
                groups.append(next(same, None) or make(facts, f"{number}-{name}.tar.xz", pip, new))
        absent = {name: "not on this index" for name, packages in travels.items() if not packages}
        kit = {"schema_version": 1, "python": python, "platform": "linux_x86_64", "bare": bare, "groups": groups, "absent": absent}
        (new / "kit.json").write_text(json.dumps(kit, indent=1) + "\n")
        if to.exists():
            os.replace(to, Path(folder) / "old")
        os.replace(new, to)
    return kit


def make(facts: dict[str, Any], stem: str, pip: Pip, folder: Path) -> dict[str, Any]:
    """Download and pack one group; return what `kit.json` says of it."""
    say(f"{facts['name']}: downloading")
    wheels = pip.download(facts["packages"])
    size = sum(wheel.stat().st_size for wheel in wheels)
    say(f"{facts['name']}: packing {size / 1e6:.0f} MB of wheels")
    cut = Cut(folder, stem, facts["part_bytes"])
    pack(wheels, cut)
    return {**facts, "wheel_bytes": size, **cut.facts()}


def reused(group: dict[str, Any], old: Path, new: Path) -> bool:
    """Whether the parts of a group are still as they were made; they are then in the new kit too."""
    paths = [(old / part["name"], part["sha256"]) for part in group["parts"]]
    if not all(path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256 for path, sha256 in paths):
        return False
    for path, _ in paths:
        os.link(path, new / path.name)
    return True


def say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def stop(_signal: int, _frame: object) -> NoReturn:
    raise Problem("terminated: run it again")


def read(to: Path) -> dict[str, Any]:
    try:
        kit: dict[str, Any] = json.loads((to / "kit.json").read_text())
    except (OSError, ValueError) as error:
        raise Problem(f"{to} holds no kit: run prepare.py --to {to} without --plan first") from error
    return kit


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path(__file__).with_name("kit"), help="the folder of the kit")
    parser.add_argument("--part-mb", type=float, default=40, help="no part is larger")
    parser.add_argument("--python", default="3.12", help="the Python of the bare machine")
    parser.add_argument("--bare", type=Path, default=Path(__file__).with_name("bare.txt"), help="what that machine has, as pip reads it")
    parser.add_argument("--plan", action="store_true", help="say what a kit that was made holds")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    try:
        if options.part_mb < 0.001:
            raise Problem(f"--part-mb {options.part_mb} is no size of a part: give at least 0.001")
        made = read(options.to) if options.plan else prepare(options.to.absolute(), options.part_mb, options.python, options.bare)
        print(table(made))
    except (Problem, OSError) as error:
        say(f"prepare: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        say("prepare: interrupted: run it again")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
