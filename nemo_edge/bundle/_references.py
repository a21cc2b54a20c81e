"""What the files of a bundle name: engines their graphs, graphs their weights. All of it is to be in the bundle, as a file with a hash.

A hash covers a file's bytes and not what these lead to: a consistent manifest says nothing of a graph elsewhere that an engine is opened
with. Reads names; opens no engine and no weights.
"""

from __future__ import annotations

__all__ = ["inside", "strays"]

import json
import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from nemo_edge.system.errors import InputError

_NAMED = ("model", "plan")
"""What a sidecar names, from the bundle's folder."""


def inside(name: str) -> bool:
    """Whether a name is one of a file below a folder, on any system: relative, in its shortest form, and never upwards."""
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    return bool(parts) and posixpath.normpath(name) == name and ".." not in parts and not windows.anchor and "\\" not in name


def strays(folder: Path, names: Collection[str], files: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with each of `names`, files of a bundle: it is a link, or names what is not among the bundle's `files`.

    A file that is no JSON object or no ONNX file names nothing: what opens it refuses it.
    """
    whole = folder.resolve()
    for name in names:
        if (whole / name).resolve() != whole / name:
            yield f"{name} is a link"
            continue
        engines = (named for named in _of_sidecar(folder, name) if not inside(named) or (folder / named).exists())
        for named in (*engines, *_of_graph(folder, name)):  # an engine of a graph that is not there opens nothing
            if named not in files:
                yield f"{name} names {named}, which is no file of the bundle"


def _of_sidecar(folder: Path, name: str) -> Iterator[str]:
    if not (name.startswith("engines/") and name.endswith(".json")):
        return
    try:
        found = json.loads((folder / name).read_bytes())
    except (ValueError, RecursionError):
        return
    yield from (str(found[key]) for key in _NAMED if key in found) if isinstance(found, dict) else ()


def _of_graph(folder: Path, name: str) -> Iterator[str]:
    """From the bundle's folder; what lies outside begins with "..", or with a slash."""
    if not name.endswith(".onnx"):
        return
    from nemo_edge.graph.onnxfile import open_graph

    try:
        found = open_graph(folder / name).locations()
    except InputError:
        return
    yield from (posixpath.normpath(posixpath.join(posixpath.dirname(name), location)) for location in sorted(found))
