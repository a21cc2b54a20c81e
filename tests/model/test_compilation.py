"""What torch.compile makes of a UNet's parts answers as eager does, and what was kept can still stand in for it."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
from conftest import toy_unet
from torch import Tensor, nn

from nemo_edge.localization._prefix import answering
from nemo_edge.model.compilation import check_compiler, compile_
from nemo_edge.system.errors import MissingDependency

COMPILERS = ("c++", "g++", "clang++")


def small() -> nn.Module:
    return toy_unet(
        block_out_channels=(8,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        mid_block_type=None,
    )


def run(unet: nn.Module, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, text = torch.randn(rows, 4, 16, 16, generator=generator), torch.randn(rows, 5, 16, generator=generator)
    with torch.no_grad():
        out: Tensor = unet(x, torch.tensor(981.0), text).sample
    return out


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="torch.compile needs a C++ compiler")
def test_parts_are_compiled_and_answer_as_eager_does() -> None:
    plain = small()
    unet = compile_(copy.deepcopy(plain))
    compiled = [name for name, module in unet.named_modules() if "forward" in vars(module)]
    assert [name.rpartition(".")[2] for name in compiled if "attentions" in name] == ["attn1", "ff"]
    assert sum("resnets" in name for name in compiled) == 3
    for rows in (1, 3):
        torch.testing.assert_close(run(unet, rows), run(plain, rows), atol=1e-5, rtol=1e-5)
    block = unet.get_submodule("down_blocks.0.resnets.0")
    forward = block.forward
    with answering({block: torch.zeros(3, 8, 16, 16)}):
        assert not torch.equal(run(unet, 3), run(plain, 3))
    assert block.forward is forward
    torch.testing.assert_close(run(unet, 3), run(plain, 3), atol=1e-5, rtol=1e-5)


def test_a_compiler_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/g++" if name == "g++" else None)
    check_compiler("localization.compiled")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MissingDependency, match=r"install g\+\+, or set localization\.compiled = false"):
        check_compiler("localization.compiled")
