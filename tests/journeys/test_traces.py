"""What is handed on says nothing of the machine that made it, and is the same wherever it is made."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from conftest import save_toy_sd, toy_unet
from torch import Tensor, nn
from traces import traces
from transformers import CLIPTokenizer

import nemo_edge
from nemo_edge.export._component import export_component
from nemo_edge.graph.onnxfile import SCOPES, open_graph
from nemo_edge.model.component import Component, Port
from nemo_edge.recipe.settings import ExportSettings
from nemo_edge.system.files import sha256_file

PACKAGE = Path(nemo_edge.__file__).parent


def clone(folder: Path, model: Path) -> Path:
    """A copy of the package, and of a checkpoint beside it."""
    shutil.copytree(PACKAGE, folder / "nemo_edge", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(model, folder / "model")
    return folder


def exported(folder: Path, seed: int) -> dict[str, str]:
    """The hash of each file that a clone's own `nemo-edge export` writes, started from the clone, by a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1"}
    check = f"import nemo_edge; assert nemo_edge.__file__.startswith({str(folder)!r})"
    run = "from nemo_edge.cli.main import main; main()"
    options = ["export", str(folder / "model"), "--out", "out", "--masked"]
    subprocess.run([sys.executable, "-c", f"{check}; {run}", *options], cwd=folder, env=environment, check=True, capture_output=True)
    return {p.relative_to(folder / "out").as_posix(): sha256_file(p) for p in (folder / "out").rglob("*") if p.is_file()}


@pytest.mark.slow
def test_two_clones_in_different_folders_export_the_same_bytes(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    blocks: dict[str, object] = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
    model = save_toy_sd(tmp_path / "model", tokenizer, toy_unet(block_out_channels=(8,), layers_per_block=1, **blocks))
    places = [clone(tmp_path / name, model) for name in ("a", "another/and/much/longer")]
    one, other = (exported(place, seed) for seed, place in enumerate(places, 1))
    assert {name for name in one if name.endswith((".onnx", ".data"))} == {
        f"{component}/model.onnx{rest}" for component in ("text_encoder", "unet_masked", "vae_decoder") for rest in ("", ".data")
    }
    assert one == other
    assert list(traces(places[0] / "out", tmp_path)) == []


def test_no_file_of_a_bundle_tells_where_it_was_made(tiny_bundle: Path, tiny_origin: Path) -> None:
    assert {"manifest.json", "model_index.json"} <= {p.name for p in tiny_bundle.iterdir()}
    assert list(traces(tiny_bundle, tiny_bundle.parent, tiny_origin)) == []


def test_the_search_finds_what_it_is_for(tiny_bundle: Path, tmp_path: Path) -> None:
    for name, content in (
        ("a.bin", b"\0/home/jo/x.py\0"),
        ("b.json", json.dumps({"at": "C:\\Users\\jo"}).encode()),
        ("c/d.txt", str(tiny_bundle).encode()),
        ("e.md", b"../model, https://example.org/data and /v1/models"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert [found.split(":")[0] for found in traces(tmp_path)] == ["a.bin", "b.json", "c/d.txt"]


class _Either(nn.Module):
    """Its graph has a branch, which is two graphs inside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (torch.cond(x.sum() > 0, lambda x: self.linear(x) * 2, lambda x: self.linear(x) - 1, (x,)),)


def test_graphs_inside_of_a_graph_keep_nothing_either(tmp_path: Path) -> None:
    component = Component("either", _Either().eval().requires_grad_(False), (Port("x", ("batch", 3)),), ("y",), {})
    export_component(component, tmp_path / "unet", ExportSettings(), {})
    model = open_graph(tmp_path / "unet" / "model.onnx").model
    inner = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.g.node]
    inner += [attribute.g for f in model.functions for node in f.node for attribute in node.attribute if attribute.g.node]
    assert len(inner) == 2
    assert keys(model) == {SCOPES}
    assert list(traces(tmp_path)) == []


@pytest.mark.parametrize("folder", ["text_encoder", "unet", "unet_masked", "vae_decoder"])
def test_of_the_exporter_s_notes_the_modules_alone_are_kept(tiny_bundle: Path, folder: str) -> None:
    model = open_graph(tiny_bundle / folder / "model.onnx").model
    assert keys(model) == {SCOPES}
    assert {entry.key.partition(".")[0] for entry in model.metadata_props} == {"nemo_edge"}
    assert model.ByteSize() < 2000 * len(model.graph.node)


def keys(message: object) -> set[str]:
    """The keys of all `metadata_props` below a model; its own are not counted."""
    found: set[str] = set()
    for field, value in message.ListFields():  # type: ignore[attr-defined]
        if field.name == "metadata_props":
            found |= {entry.key for entry in value} if not isinstance(message, onnx.ModelProto) else set()
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                found |= keys(part)
    return found
