"""A repository's pipeline in this process: the library's pictures, of the version that was shipped last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tritonclient.grpc")

from nemo_edge.serving.golden import LEVELS, Golden, request
from nemo_edge.serving.local import open_painter
from nemo_edge.serving.repository import ship
from nemo_edge.system.errors import BundleError, InputError


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


@pytest.mark.parametrize("backend", ["python", "native"])
def test_the_picture_is_the_library_s(shippable: Path, golden: Golden, tmp_path: Path, stack: ExitStack, backend: str) -> None:
    ship(shippable, tmp_path, backend)
    painter = open_painter(tmp_path, stack)
    assert np.abs(painter.paint(golden.tensors).pictures.astype(int) - golden.picture).max() <= LEVELS
    free = painter.paint({**golden.tensors, **request(policy="off")})
    assert np.abs(free.pictures.astype(int) - golden.picture).max() > LEVELS


def test_the_newest_version_is_opened_and_its_policies_are_its_own(
    shippable: Path, golden: Golden, tmp_path: Path, stack: ExitStack
) -> None:
    ship(shippable, tmp_path, variant="masked")
    for version in range(2, 11):
        (tmp_path / "pipeline" / str(version)).mkdir()
    ship(shippable, tmp_path, variant="masked")
    painter = open_painter(tmp_path, stack)
    assert painter.version.number == 11
    assert np.abs(painter.paint(golden.tensors).pictures.astype(int) - golden.picture).max() <= LEVELS


def test_a_changed_engine_is_not_opened(shippable: Path, tmp_path: Path, stack: ExitStack) -> None:
    ship(shippable, tmp_path)
    graph = tmp_path / "unet" / "1" / "model.onnx" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(BundleError, match="was changed since it was shipped"):
        open_painter(tmp_path, stack)


def test_a_folder_without_a_pipeline_is_refused(tmp_path: Path, stack: ExitStack) -> None:
    with pytest.raises(InputError, match="has no pipeline that nemo-edge shipped"):
        open_painter(tmp_path, stack)
