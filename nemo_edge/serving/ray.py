"""A repository on Ray Serve, where one machine is too small: replicas, queue and scaling are Ray's, a replica is one pipeline.

    serve run nemo_edge.serving.ray:app repository=/srv/models

Every replica opens the repository by its path, so each machine needs to see it there, and needs nemo-edge.
"""

from __future__ import annotations

__all__ = ["Pictures", "app"]

import asyncio
from collections.abc import Mapping
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, cast

from PIL import Image

from nemo_edge.serving.local import open_painter
from nemo_edge.serving.requests import read_json
from nemo_edge.system.errors import InputError, MissingDependency, NemoEdgeError

try:
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import Response
except ImportError as error:
    raise MissingDependency("Ray Serve is not here: `pip install 'nemo-edge[ray]'`") from error


@serve.deployment(max_ongoing_requests=1)
class Pictures:
    """The newest pipeline of a repository; it draws one request at a time, and more at once where it has more replicas."""

    def __init__(self, repository: str, name: str = "") -> None:
        self._painter = open_painter(Path(repository), ExitStack(), name)  # the engines live as long as the replica's process

    async def __call__(self, request: Request) -> Response:
        """Answer a request in JSON (`read_json` says what it may have) with a picture as PNG, or 400 and what is wrong with it."""
        try:
            painting = await asyncio.to_thread(self._painter.paint, read_json(await request.body()))
        except NemoEdgeError as error:
            return Response(str(error), 400 if isinstance(error, InputError) else 500, media_type="text/plain")
        encoded = BytesIO()
        Image.fromarray(painting.pictures[0]).save(encoded, format="PNG")
        return Response(encoded.getvalue(), media_type="image/png", headers={"nemo-edge-score": str(painting.score_B[0])})


def app(arguments: Mapping[str, str]) -> Any:
    """What `serve run` builds: the deployment of `repository`, of the model shipped to it as `name`. Raises `InputError` for any other
    argument."""
    if not {"repository"} <= {*arguments} <= {"repository", "name"}:
        given = ", ".join(arguments) or "nothing"
        raise InputError(f"Ray was given {given}: give repository=FOLDER, which `nemo-edge ship` made, and the name=NAME it gave, if any")
    return cast(Any, Pictures).bind(str(Path(arguments["repository"]).resolve()), arguments.get("name", ""))
