"""Graphs before their weights: what they hang on, and what is kept of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner
from nemo_edge.export import _component
from nemo_edge.export._component import Disagreement, export_component
from nemo_edge.export._traces import trace_key
from nemo_edge.model.component import Component, Port
from nemo_edge.recipe.settings import ExportSettings


class Layer(nn.Module):
    """A product and a factor that is a setting."""

    def __init__(self, seed: int = 0, factor: float = 2.0, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.linear = nn.Linear(4, width)
        self.factor = factor

    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.linear(sample) * self.factor,)


def layer(seed: int = 0, **changes: float) -> Component:
    module = Layer(seed, **changes).eval().requires_grad_(False)
    return Component("layer", module, (Port("sample", ("batch", 4)),), ("out",), {})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], int]:
    """How often a module was traced, with a cache that is empty at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    traces: list[str] = []
    graph = _component._Tracing.graph
    monkeypatch.setattr(_component._Tracing, "graph", lambda self: traces.append("one") or graph(self))
    return lambda: len(traces)


def export(component: Component, folder: Path, settings: ExportSettings | None = None) -> Path:
    export_component(component, folder, settings or ExportSettings(), {})
    return folder / "model.onnx"


def kept(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "nemo-edge" / "traces").iterdir())


def test_a_module_of_the_same_structure_is_traced_once(counted: Callable[[], int], tmp_path: Path) -> None:
    export(layer(0), tmp_path / "first")
    path = export(layer(1), tmp_path / "second")
    assert counted() == 1
    feed = np.ones((3, 4), np.float32)
    with OnnxRuntimeRunner(path) as runner, torch.no_grad():
        assert np.allclose(runner({"sample": feed})["out"], layer(1).module(torch.from_numpy(feed))[0], atol=1e-6)


def test_a_kept_graph_gives_the_file_that_a_traced_one_gives(counted: Callable[[], int], tmp_path: Path) -> None:
    traced, again = (export(layer(), tmp_path / name) for name in ("traced", "again"))
    assert counted() == 1
    assert {path.name: path.read_bytes() for path in traced.parent.iterdir()} == {p.name: p.read_bytes() for p in again.parent.iterdir()}


def test_a_kept_graph_holds_no_weights(counted: Callable[[], int], tmp_path: Path) -> None:
    component = layer()
    export(component, tmp_path / "out")
    (path,) = kept(tmp_path)
    weights = component.module.linear.weight.numpy()
    assert weights.tobytes() not in path.read_bytes()
    assert weights.T.tobytes() not in path.read_bytes()


@pytest.mark.parametrize(
    ("component", "settings"),
    [
        (layer(factor=3.0), ExportSettings()),
        (layer(width=6), ExportSettings()),
        (layer(), ExportSettings(dtype="fp16")),
        (layer(), ExportSettings(opset=18)),
        (layer(), ExportSettings(batch=2)),
        (replace(layer(), outputs=("other",)), ExportSettings()),
    ],
    ids=["a setting", "a shape", "a type", "the opset", "a pinned size", "a name"],
)
def test_what_changes_a_graph_has_it_traced_again(
    counted: Callable[[], int], tmp_path: Path, component: Component, settings: ExportSettings
) -> None:
    export(layer(), tmp_path / "first")
    export(component, tmp_path / "second", settings)
    assert counted() == 2


@pytest.mark.parametrize("content", [b"no graph", b"", None], ids=["no graph", "empty", "another's"])
def test_a_spoiled_cache_is_as_one_that_is_empty(counted: Callable[[], int], tmp_path: Path, content: bytes | None) -> None:
    export(layer(), tmp_path / "first")
    (path,) = kept(tmp_path)
    if content is None:  # with a weight that the module does not have
        model = onnx.ModelProto.FromString(path.read_bytes())
        model.graph.initializer[0].name = "of_another"
        content = model.SerializeToString()
    path.write_bytes(content)
    export(layer(), tmp_path / "second")
    export(layer(), tmp_path / "third")
    assert counted() == 2


def test_where_nothing_can_be_kept_all_is_traced(counted: Callable[[], int], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    export(layer(), tmp_path / "first")
    export(layer(), tmp_path / "second")
    assert counted() == 2


def test_a_kept_graph_that_is_another_s_is_found_out_and_dropped(counted: Callable[[], int], tmp_path: Path) -> None:
    export(layer(factor=3.0), tmp_path / "other")
    (other,) = kept(tmp_path)
    export(layer(), tmp_path / "own")
    (own,) = set(kept(tmp_path)) - {other}
    own.write_bytes(other.read_bytes())
    with pytest.raises(Disagreement):
        export(layer(), tmp_path / "again")
    export(layer(), tmp_path / "again")
    assert counted() == 3


def test_graphs_not_used_for_long_go(counted: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_edge.export._traces._KEPT", 1)
    export(layer(), tmp_path / "first")
    (first,) = kept(tmp_path)
    export(layer(width=6), tmp_path / "second")
    assert first not in kept(tmp_path)
    assert len(kept(tmp_path)) == 1


def test_what_a_module_was_read_from_is_no_part_of_its_key() -> None:
    here, there = Layer(), Layer(seed=1)
    here.config, there.config = {"_name_or_path": "here", "heads": 2}, {"_name_or_path": "there", "heads": 2}
    assert trace_key(here, []) == trace_key(there, [])
    there.config["heads"] = 4
    assert trace_key(here, []) != trace_key(there, [])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.zeros(2), np.ones(2)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (partial(max, 1), partial(max, 2)),
    ],
    ids=["array", "tensor", "partial"],
)
def test_what_an_attribute_holds_is_a_part_of_the_key(one: object, other: object) -> None:
    keys = []
    for value in (one, one, other):
        module = Layer()
        module.held = value
        keys.append(trace_key(module, []))
    assert keys[0] == keys[1] != keys[2]


def test_a_kept_graph_is_an_onnx_file_whose_weights_are_elsewhere(counted: Callable[[], int], tmp_path: Path) -> None:
    export(layer(), tmp_path / "out")
    (path,) = kept(tmp_path)
    model = onnx.ModelProto.FromString(path.read_bytes())
    assert {tensor.name for tensor in model.graph.initializer if tensor.external_data} >= {"module.linear.weight", "module.linear.bias"}
