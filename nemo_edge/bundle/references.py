"""What the files of a bundle name: engines their graphs, graphs their weights. All of it is to be in the bundle, as a file with a hash.

A hash covers a file's bytes and not what these lead to: a consistent manifest says nothing of a graph elsewhere that an engine is opened
with. Reads names; opens no engine and no weights.
"""

from __future__ import annotations

__all__ = ["strays"]

import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path

from nemo_edge.system.errors import InputError
from nemo_edge.system.files import inside
from nemo_edge.system.reading import read_json

_NAMED = ("model", "plan")
"""What a sidecar names, from the bundle's folder."""


def strays(folder: Path, names: Collection[str], files: Collection[str]) -> Iterator[str]:
    """Yield what is wrong with each of `names`, files of a bundle or of a version that is served, none of which is to be opened then.

    It is a link or no regular file, describes an engine or is a graph and cannot be read as one, or names what is not among the `files`.
    """
    whole = folder.resolve()
    for name in names:
        if not inside(name):
            yield f"{name!r} is no file below the folder"
        elif (whole / name).resolve() != whole / name:
            yield f"{name} is a link"
        elif not (whole / name).is_file():
            yield f"{name} is no regular file"
        else:
            try:
                yield from (f"{name} names {named}, which is no file of the bundle" for named in _named(folder, name) if named not in files)
            except InputError as error:
                yield f"{name} cannot be read ({error})"


def _named(folder: Path, name: str) -> Iterator[str]:
    """What a file names, from the bundle's folder; what lies outside begins with "..", or with a slash."""
    if name.startswith("engines/") and name.endswith(".json"):
        found = read_json(folder / name)
        if not isinstance(found, dict):
            raise InputError("it holds no JSON object")
        own = (str(found[key]) for key in _NAMED if key in found)
        yield from (
            named for named in own if not inside(named) or (folder / named).exists()
        )  # of a graph that is not there nothing is opened
    elif name.endswith(".onnx"):
        from nemo_edge.graph.onnxfile import open_graph

        found = open_graph(folder / name).locations()
        yield from (posixpath.normpath(posixpath.join(posixpath.dirname(name), location)) for location in sorted(found))
