"""Puts the parts of a kit together, on a machine without a network: `prepare.py` made them, this unpacks them into a folder for PYTHONPATH.

    python join.py KIT_FOLDER --to SITE [--have PARTS_FOLDER ...]

Each group whose parts are all there, and are those that `kit.json` names, is unpacked; the others wait for a later call, with the folders
of the parts that have come since. A group is unpacked beside its place, and moved there when it is whole. Needs Python >= 3.11 alone.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import os
import shutil
import signal
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn, cast

FIRST = "core"
"""The group without which nothing runs."""


class Problem(Exception):
    """What went wrong and the remedy, in one line."""


class Parts(io.RawIOBase):
    """Several files, read as the one they were cut from."""

    def __init__(self, paths: list[Path]) -> None:
        self._rest = list(paths)
        self._file: BinaryIO = io.BytesIO()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        while not data and self._rest:
            self._file.close()
            self._file = self._rest.pop(0).open("rb")
            data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def find(group: dict[str, Any], folders: list[Path]) -> tuple[list[Path], list[str]]:
    """Return where the parts of a group lie, and what is the matter with those that cannot be used."""
    found, wrong = [], []
    for part in group["parts"]:
        there = [folder / part["name"] for folder in folders if (folder / part["name"]).is_file()]
        whole = next((path for path in there if intact(path, part)), None)
        if whole is not None:
            found.append(whole)
        else:
            wrong.append(f"{part['name']} is {'broken: copy it again' if there else 'missing'}")
    return found, wrong


def intact(path: Path, part: dict[str, Any]) -> bool:
    if path.stat().st_size != part["bytes"]:
        return False
    with path.open("rb") as file:
        return bool(hashlib.file_digest(file, "sha256").hexdigest() == part["sha256"])


def unpack(group: dict[str, Any], paths: list[Path], folder: Path) -> None:
    """Unpack a group into an empty folder. Raises `Problem` when its parts, intact as they are, make no whole."""
    try:
        with Parts(paths) as parts, lzma.LZMAFile(cast(IO[bytes], parts)) as plain, tarfile.open(fileobj=plain, mode="r|") as tar:
            tar.extractall(folder, filter="data")
    except (lzma.LZMAError, tarfile.TarError, EOFError) as error:
        raise Problem(f"{group['name']} cannot be unpacked ({error}): make the kit again with prepare.py") from error


def place(group: dict[str, Any], unpacked: Path, site: Path) -> None:
    """Move a group that is whole into `site`, entry by entry; what an earlier kit put there goes first.

    The stamp names the group last: one that was moved half has no name in it, and the next call moves it again.
    """
    stamp = site / ".joined" / f"{group['name']}.json"
    aside = unpacked.with_name("aside")
    entries = sorted(path.name for path in unpacked.iterdir())
    before = json.loads(stamp.read_text())["entries"] if stamp.is_file() else []
    either = sorted({*before, *entries})
    aside.mkdir()
    write_stamp(stamp, "", either)
    for name in either:
        if os.path.lexists(site / name):
            os.replace(site / name, aside / name)
        if name in entries:
            os.replace(unpacked / name, site / name)
    write_stamp(stamp, group["sha256"], entries)


def write_stamp(stamp: Path, sha256: str, entries: list[str]) -> None:
    stamp.parent.mkdir(exist_ok=True)
    written = stamp.with_suffix(".tmp")
    written.write_text(json.dumps({"sha256": sha256, "entries": entries}))
    os.replace(written, stamp)


def joined(group: dict[str, Any], site: Path) -> bool:
    """Whether this very group is in `site` already."""
    stamp = site / ".joined" / f"{group['name']}.json"
    return stamp.is_file() and bool(json.loads(stamp.read_text())["sha256"] == group["sha256"])


def join(kit: Path, site: Path, have: list[Path]) -> bool:
    """Join what can be joined, with a line for each group; return whether the first is there."""
    try:
        groups = json.loads((kit / "kit.json").read_text())["groups"]
    except (OSError, ValueError, KeyError) as error:
        raise Problem(f"{kit} has no kit.json that can be read: give the folder that prepare.py made") from error
    site.mkdir(parents=True, exist_ok=True)
    for left in site.glob(".join-*"):  # of a call that was killed
        shutil.rmtree(left)
    for group in groups:
        versions = ", ".join(f"{name} {package['version']}" for name, package in group["packages"].items())
        if joined(group, site):
            print(f"{group['name']}: is joined already")
            continue
        paths, wrong = find(group, [kit, *have])
        if wrong:
            print(f"{group['name']}: not joined, {', '.join(wrong)}")
            continue
        with tempfile.TemporaryDirectory(prefix=".join-", dir=site) as folder:
            unpacked = Path(folder) / "unpacked"
            unpacked.mkdir()
            unpack(group, paths, unpacked)
            place(group, unpacked, site)
        print(f"{group['name']}: joined ({versions})", flush=True)
    return any(group["name"] == FIRST and joined(group, site) for group in groups)


def stop(_signal: int, _frame: object) -> NoReturn:
    raise Problem("terminated: call it again, what was joined stays")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, metavar="KIT_FOLDER", help="the folder with kit.json")
    parser.add_argument("--to", type=Path, required=True, metavar="SITE", help="the folder to put on PYTHONPATH")
    parser.add_argument("--have", type=Path, nargs="+", action="extend", default=[], metavar="PARTS_FOLDER", help="where more parts lie")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, stop)
    try:
        return 0 if join(options.kit, options.to, options.have) else 2
    except (Problem, OSError) as error:
        print(f"join: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("join: interrupted: call it again, what was joined stays", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
