"""Masked graphs as they are in large: UNets of all levels and kinds of blocks, a mask of as many layers as XL has."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import toy_unet
from export.test_component import FACTOR, FACTS, SIZES, assert_agrees, masked
from torch import Tensor, nn

from nemo_edge.export._component import export_component
from nemo_edge.export._verification import Reference, answered, random_feeds
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.component import Component, Port
from nemo_edge.model.surgery import masked as masked_by
from nemo_edge.recipe.settings import ExportSettings


@pytest.fixture(scope="session")
def short_sdxl(toy_sdxl: Checkpoint) -> Checkpoint:
    """XL's toy with all of its levels and kinds of blocks, and less of the same in a row."""
    config = {name: value for name, value in toy_sdxl.unet.config.items() if not name.startswith("_")}
    return replace(toy_sdxl, unet=toy_unet(**{**config, "layers_per_block": 1, "transformer_layers_per_block": (1, 1, 2)}))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_masked_unet_of_all_levels_is_eagers(toy: Checkpoint, short_sdxl: Checkpoint, tmp_path: Path, family: str) -> None:
    checkpoint = toy if family == "sd" else short_sdxl
    component = masked(checkpoint)
    export_component(component, tmp_path / "unet", ExportSettings(), FACTS, FACTOR)
    for batch, sizes in SIZES:
        assert_agrees(component, tmp_path / "unet" / "model.onnx", batch, **sizes)


class _Many(nn.Module):
    """As many value projections as XL has, behind a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(4, 2, bias=False) for _ in range(70))

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor]:
        with masked_by(list(self.projections), mask):  # type: ignore[arg-type]
            return (torch.stack([linear(x[:, None]) for linear in self.projections]).sum(0),)


def test_a_mask_of_many_layers_is_opened_without_optimization(tmp_path: Path) -> None:
    """As fp16 is verified: ONNX Runtime then looks for sizes inside of the graph alone, where the exporter leaves small ones."""
    module = _Many().eval().requires_grad_(False)
    component = Component("many", module, (Port("x", ("batch", 4)), Port("mask", ("batch", 140), "mask")), ("y",), {})
    reference = Reference(answered(component, random_feeds(component, ExportSettings(), FACTOR)), lambda: component)
    half = replace(component, module=copy.deepcopy(module).half())
    exported = export_component(half, tmp_path / "many", ExportSettings(dtype="fp16"), {}, reference=reference)
    assert all(a.passed for a in exported.agreement)
