"""A repository's pipeline and the models it calls, all in this process: what a server is for where something else takes the requests.

Knows the repository; nothing of what runs it.
"""

from __future__ import annotations

__all__ = ["open_painter"]

from contextlib import ExitStack
from pathlib import Path

from nemo_edge.serving.painter import Painter
from nemo_edge.serving.versions import newest_pipeline


def open_painter(repository: Path, stack: ExitStack, label: str = "") -> Painter:
    """Open the newest pipeline that was shipped under a label to a repository, with the engines it calls, which `stack` closes.

    New policies beside the pipeline (`ship --masks-only`) are in force with the next picture, as in a server. Raises `BundleError`
    for files that are not as they were shipped, `MissingDependency` for an engine that does not run here.
    """
    return Painter.open(newest_pipeline(repository, label), None, stack=stack)
