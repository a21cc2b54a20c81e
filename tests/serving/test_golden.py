"""The golden picture: the library's own, and what a server that gives another is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.sampling.generate import Request, draw
from nemo_edge.serving.golden import Golden, ask, check_golden, request
from nemo_edge.serving.server import Server
from nemo_edge.system.errors import NemoEdgeError


def test_the_golden_picture_is_that_of_generate(shippable: Path, golden: Golden, tmp_path: Path) -> None:
    (path,) = draw(shippable, Request("a red pig", variant="masked"), tmp_path / "p.png")
    assert np.array_equal(np.asarray(Image.open(path)), golden.picture[0])


def test_a_request_s_tensors_have_the_pipeline_s_types() -> None:
    tensors = request(prompt="süß", steps=3, guidance=1.5, seed=7)
    assert {name: tensor.dtype.name for name, tensor in tensors.items()} == {
        "prompt": "object",
        "steps": "int32",
        "guidance": "float32",
        "seed": "int64",
    }
    assert tensors["prompt"][0] == "süß".encode()


@pytest.mark.triton
def test_a_server_that_draws_it_passes_and_one_that_does_not_is_not_to_be_used(triton: Server, golden: Golden) -> None:
    check_golden(golden, triton.grpc)
    other = golden.picture.copy()
    other[0, 0, 0, 0] ^= 64
    with pytest.raises(NemoEdgeError, match="the server's picture is 64 grey levels off the library's, 1 is allowed"):
        check_golden(replace(golden, picture=other), triton.grpc)
    with pytest.raises(NemoEdgeError, match=r"the server gave a picture of shape \[1, 32, 32, 3\], expected \[1, 16, 32, 3\]"):
        check_golden(replace(golden, picture=other[:, :16]), triton.grpc)


@pytest.mark.triton
def test_what_the_server_refuses_is_told_in_its_words(triton: Server) -> None:
    with pytest.raises(NemoEdgeError, match="refused: steps 0: input should be greater than or equal to 1"):
        ask(triton.grpc, request(prompt="a red pig", steps=0))
