"""Every component as ONNX: run at sizes other than the traced ones, against eager; names, types, provenance, refusals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import toy_unet
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from nemo_edge.backends.onnxruntime import OnnxRuntimeRunner, open_runner
from nemo_edge.backends.torch import open_runner as open_eager
from nemo_edge.export._component import export_component
from nemo_edge.export._verification import answered, random_feeds, verify
from nemo_edge.graph.agreement import Exported
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.component import VALUE_MASK, Component, Port
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import gate, silenced
from nemo_edge.recipe.settings import ExportSettings
from nemo_edge.system.errors import ExportError, InputError

FACTS = {"checkpoint": "0" * 64, "variant": "baked"}
FACTOR = 2
"""Pixels of a toy latent."""

Export = Callable[..., Path]
"""`export(component, **settings)`: the ONNX file of a component, made once a session."""


def small(checkpoint: Checkpoint) -> Checkpoint:
    """The toy with a UNet of two levels and one attention a block, which the exporter takes in seconds."""
    sdxl = checkpoint.config.family == "sdxl"
    extra: dict[str, Any] = {
        "cross_attention_dim": 32,
        "transformer_layers_per_block": (2, 1),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12 + 6 * 4,
    }
    unet = toy_unet(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        **(extra if sdxl else {}),
    )
    return replace(checkpoint, unet=unet)


def some(checkpoint: Checkpoint) -> NeuronSet:
    layers = value_layers(checkpoint.unet)
    return NeuronSet.from_lists(layers, [range(0, layer.width, 3) for layer in layers])


def masked(checkpoint: Checkpoint) -> Component:
    return gate(checkpoint.unet_component(), checkpoint.unet, value_layers(checkpoint.unet))


@pytest.fixture(scope="session")
def sd(toy: Checkpoint) -> Checkpoint:
    return small(toy)


@pytest.fixture(scope="session")
def sdxl(toy_sdxl: Checkpoint) -> Checkpoint:
    return small(toy_sdxl)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@pytest.fixture(scope="session")
def export(folder: Path) -> Export:
    made: dict[tuple[int, str, ExportSettings], Path] = {}

    def once(component: Component, owner: Checkpoint, **settings: object) -> Path:
        chosen = ExportSettings.model_validate(settings)
        key = (id(owner), f"{component.name}{len(component.inputs)}", chosen)
        if key not in made:
            place = folder / f"{len(made)}"
            exported = export_component(component, place, chosen, FACTS, FACTOR)
            assert exported.model == f"{place.name}/model.onnx"
            assert all(a.passed for a in exported.agreement)
            made[key] = place / "model.onnx"
        return made[key]

    return once


@pytest.fixture(scope="session")
def baked(sd: Checkpoint, export: Export) -> Path:
    with silenced(sd.unet, some(sd)):
        return export(sd.unet_component(), sd)


def ports(path: Path) -> dict[str, list[str | int]]:
    """Inputs and outputs by name, with their dimensions."""
    graph = onnx.load(str(path), load_external_data=False).graph
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.input, *graph.output]}


def kinds(path: Path) -> dict[str, int]:
    graph = onnx.load(str(path), load_external_data=False).graph
    return {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(str(path), load_external_data=False).graph.node)


def assert_agrees(component: Component, path: Path, batch: int, tolerance: float = 1e-4, **sizes: int) -> None:
    feed = component.example(batch, seed=batch, **sizes)
    expected = open_eager(component)(feed)
    with open_runner(path) as runner:
        got = runner(feed)
    assert list(got) == list(component.outputs)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert np.abs(got[name] - value).max() <= tolerance * max(np.abs(value).max(), 1.0), name


SIZES = [(1, {}), (3, {"height": 24, "width": 16}), (64, {"height": 8, "width": 32})]


@pytest.mark.parametrize(("batch", "sizes"), SIZES)
def test_a_baked_unet_is_eagers_silenced_one(sd: Checkpoint, baked: Path, batch: int, sizes: dict[str, int]) -> None:
    with silenced(sd.unet, some(sd)):
        assert_agrees(sd.unet_component(), baked, batch, **sizes)


def test_a_baked_unet_is_not_the_untouched_one(sd: Checkpoint, baked: Path) -> None:
    component = sd.unet_component()
    found = verify(baked, answered(component, random_feeds(component, ExportSettings(), FACTOR)), "fp32")
    assert not any(a.passed for a in found)


@pytest.mark.parametrize(("batch", "sizes"), SIZES)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_a_masked_unet_is_eagers(sd: Checkpoint, sdxl: Checkpoint, export: Export, family: str, batch: int, sizes: dict[str, int]) -> None:
    checkpoint = sd if family == "sd" else sdxl
    component = masked(checkpoint)
    assert_agrees(component, export(component, checkpoint), batch, **sizes)


def test_a_mask_acts_per_row_in_the_graph(sd: Checkpoint, baked: Path, export: Export) -> None:
    component, neurons = masked(sd), some(sd)
    feed = component.example(2)
    plain = {name: array for name, array in feed.items() if name != VALUE_MASK}
    mask_BN = np.stack([np.ones(neurons.total, np.float32), neurons.mask()])
    with open_runner(export(component, sd)) as runner, open_runner(baked) as silent:
        got = runner({**plain, VALUE_MASK: mask_BN})["out_sample"]
        np.testing.assert_allclose(got[1], silent(plain)["out_sample"][1], atol=1e-5)
    np.testing.assert_allclose(got[0], open_eager(sd.unet_component())(plain)["out_sample"][0], atol=1e-5)
    assert np.abs(got[1] - open_eager(sd.unet_component())(plain)["out_sample"][1]).max() > 1e-4


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_text_encoders_are_eagers(toy: Checkpoint, toy_sdxl: Checkpoint, export: Export, family: str, batch: int) -> None:
    checkpoint = toy if family == "sd" else toy_sdxl
    for index in range(len(checkpoint.text_encoders)):
        component = checkpoint.text_component(index)
        assert_agrees(component, export(component, checkpoint), batch)


@pytest.mark.parametrize(("batch", "sizes"), [*SIZES, (1, {"height": 9, "width": 15})])
def test_the_decoder_is_eagers(toy: Checkpoint, export: Export, batch: int, sizes: dict[str, int]) -> None:
    assert_agrees(toy.vae_component(), export(toy.vae_component(), toy), batch, **sizes)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_one_timestep_serves_a_batch(family: str, sd: Checkpoint, sdxl: Checkpoint, export: Export) -> None:
    checkpoint = sd if family == "sd" else sdxl
    component = masked(checkpoint)
    feed = component.example(3)
    time = feed["timestep"][:1]
    with open_runner(export(component, checkpoint)) as runner:
        one, each = runner({**feed, "timestep": time}), runner({**feed, "timestep": np.repeat(time, 3)})
    np.testing.assert_array_equal(one["out_sample"], each["out_sample"])


def test_a_latent_the_unet_cannot_halve_is_refused_as_input(sd: Checkpoint, baked: Path) -> None:
    with open_runner(baked) as runner, pytest.raises(InputError, match=r"cannot run a feed of sample \[2, 4, 17, 16\]"):
        runner(sd.unet_component().example(2, height=17))


def test_names_and_dimensions_are_optimums(sd: Checkpoint, sdxl: Checkpoint, baked: Path, export: Export) -> None:
    latents: list[str | int] = ["batch", 4, "height", "width"]
    common = {"sample": latents, "timestep": ["batch"]}
    assert ports(baked) == {**common, "encoder_hidden_states": ["batch", 16, 16], "out_sample": latents}
    assert list(ports(export(masked(sd), sd)).items())[3] == (VALUE_MASK, ["batch", 8 + 16])
    found = ports(export(masked(sdxl), sdxl))
    assert list(found) == ["sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids", VALUE_MASK, "out_sample"]
    assert found["encoder_hidden_states"] == ["batch", 16, 32]
    assert (found["text_embeds"], found["time_ids"]) == (["batch", 12], ["batch", 6])


def test_names_of_texts_and_decoder_are_optimums(toy: Checkpoint, toy_sdxl: Checkpoint, export: Export) -> None:
    hidden = [f"hidden_states.{i}" for i in range(3)]
    expected = (
        (toy, 0, ["last_hidden_state", "pooler_output"]),
        (toy_sdxl, 0, ["last_hidden_state", "pooler_output", *hidden]),
        (toy_sdxl, 1, ["text_embeds", "last_hidden_state", *hidden]),
    )
    for checkpoint, index, outputs in expected:
        found = ports(export(checkpoint.text_component(index), checkpoint))
        assert list(found) == ["input_ids", *outputs]
        assert found["input_ids"] == ["batch", 16]
        assert found["last_hidden_state"] == ["batch", 16, 16]
    decoder = ports(export(toy.vae_component(), toy))
    assert list(decoder) == ["latent_sample", "sample"]
    assert decoder["latent_sample"] == ["batch", 4, "height", "width"]


def test_provenance_is_in_the_file(baked: Path) -> None:
    model = onnx.load(str(baked), load_external_data=False)
    props = {p.key: p.value for p in model.metadata_props}
    assert {key: value for key, value in props.items() if key.startswith("nemo_edge.")} == {f"nemo_edge.{k}": v for k, v in FACTS.items()}
    assert model.producer_name == "nemo-edge"


def test_weights_lie_beside_the_graph(baked: Path) -> None:
    assert sorted(p.name for p in baked.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    onnx.checker.check_model(str(baked), full_check=True)


def test_opset_23_keeps_attention_and_18_has_none(sd: Checkpoint, baked: Path, export: Export) -> None:
    component = masked(sd)
    older = export(component, sd, opset=18)
    for path, opset, attentions in ((baked, 23, 4), (older, 18, 0)):
        model = onnx.load(str(path), load_external_data=False)
        assert {o.domain: o.version for o in model.opset_import}[""] == opset
        assert operators(path)["Attention"] == attentions
    assert_agrees(component, older, 3, height=24, width=16)


def test_baked_rows_are_exactly_zero_in_the_file(sd: Checkpoint, baked: Path) -> None:
    initializers = [numpy_helper.to_array(t) for t in onnx.load(str(baked)).graph.initializer]
    for layer, rows in some(sd).items():
        weight = sd.unet.get_parameter(f"{layer.name}.weight").numpy()
        zeroed = weight.copy()
        zeroed[list(rows)] = 0
        assert any(np.array_equal(found, w) for found in initializers for w in (zeroed, zeroed.T)), layer.name
        assert not any(np.array_equal(found, w) for found in initializers for w in (weight, weight.T)), layer.name


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_fp16_is_fp16_throughout(sd: Checkpoint, sdxl: Checkpoint, export: Export, family: str) -> None:
    checkpoint = sd if family == "sd" else sdxl
    component = masked(checkpoint)
    path = export(component, checkpoint, dtype="fp16")
    exact = {"timestep", *(["time_ids"] if family == "sdxl" else [])}
    assert {name for name, kind in kinds(path).items() if kind != TensorProto.FLOAT16} == exact
    assert all(p.dtype == torch.float32 for p in checkpoint.unet.parameters())
    assert_agrees(component, path, 5, tolerance=2e-2, height=24, width=16)


def sines_of_times(path: Path) -> set[int]:
    """The types of a graph's time step on its way to its sines."""
    graph, reached, found = onnx.load(str(path), load_external_data=False).graph, {"timestep"}, set[int]()
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    for node in (node for node in graph.node if node.op_type != "Shape"):  # in the order in which they run
        found |= {kinds[name] for name in node.input if name in reached}
        if reached & set(node.input) and node.op_type not in ("Sin", "Cos"):
            reached |= set(node.output)
    return found


def test_fp16_and_bf16_of_a_text_encoder_and_the_decoder(toy: Checkpoint, export: Export) -> None:
    for component in (toy.text_component(0), toy.vae_component()):
        half = kinds(export(component, toy, dtype="fp16"))
        brain = kinds(export(component, toy, dtype="bf16"))
        floats = [port.name for port in component.inputs if port.holds == "float"] + list(component.outputs)
        assert {half[name] for name in floats} == {TensorProto.FLOAT16}
        assert {brain[name] for name in floats} == {TensorProto.FLOAT}


def test_bf16_has_float32_borders_and_bf16_weights(sd: Checkpoint, export: Export) -> None:
    path = export(masked(sd), sd, dtype="bf16")
    assert set(kinds(path).values()) == {TensorProto.FLOAT}
    weights = Counter(t.data_type for t in onnx.load(str(path), load_external_data=False).graph.initializer if len(t.dims) == 4)
    assert list(weights) == [TensorProto.BFLOAT16]
    assert sines_of_times(path) == {TensorProto.FLOAT}
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_pinned_sizes_are_fixed_in_the_graph(sd: Checkpoint, export: Export) -> None:
    component = sd.unet_component()
    path = export(component, sd, height=48, width=32, batch=1)
    assert ports(path) == {
        "sample": [1, 4, 24, 16],
        "timestep": [1],
        "encoder_hidden_states": [1, 16, 16],
        "out_sample": [1, 4, 24, 16],
    }
    assert_agrees(component, path, 1, height=24, width=16)
    with OnnxRuntimeRunner(path) as runner, pytest.raises(InputError, match=r"expected \[batch, 4, 24, 16\]"):
        runner(component.example(1))


def test_changed_weights_disagree(toy: Checkpoint, export: Export) -> None:
    component = toy.vae_component()
    path = export(component, toy)
    feeds = random_feeds(component, ExportSettings(), FACTOR)
    assert all(a.passed for a in verify(path, answered(component, feeds), "fp32"))
    bias = toy.vae.get_parameter("decoder.conv_out.bias")
    before = bias.detach().clone()
    try:
        bias.add_(0.01)
        found = verify(path, answered(component, feeds), "fp32")
        assert [(a.case, a.passed) for a in found] == [("batch 1", False), ("batch 3", False)]
        assert found[0].largest_error == pytest.approx(0.01, rel=1e-3)
    finally:
        bias.copy_(before)


class _OtherWhenExported(nn.Module):
    def __init__(self, difference: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)
        self.difference = difference

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.weight + (self.difference if torch.compiler.is_exporting() else 0.0),)


def two_faced(difference: float) -> Component:
    return Component("two_faced", _OtherWhenExported(difference), (Port("x", ("batch", 3)),), ("y",), {})


@pytest.mark.parametrize("difference", [1.0, float("nan")])
def test_a_graph_that_disagrees_leaves_nothing_behind(tmp_path: Path, difference: float) -> None:
    with pytest.raises(ExportError, match=r"two_faced: output y at batch 1 is off by .*; (the first|no) tensor"):
        export_component(two_faced(difference), tmp_path / "bundle" / "unet", ExportSettings(), FACTS)
    assert list((tmp_path / "bundle").iterdir()) == []


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_good_graph_leaves_only_its_folder(tmp_path: Path, dtype: str, capfd: pytest.CaptureFixture[str]) -> None:
    settings = ExportSettings.model_validate({"dtype": dtype})
    exported = export_component(two_faced(0.0), tmp_path / "unet", settings, FACTS)
    assert Exported.model_validate_json(exported.model_dump_json()) == exported
    assert [p.name for p in tmp_path.iterdir()] == ["unet"]
    assert "model.onnx" in {p.name for p in (tmp_path / "unet").iterdir()}
    assert capfd.readouterr().out == ""


class _Pairing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x.reshape(x.shape[0], x.shape[1] // 2, 2).sum(dim=-1) * self.weight,)


def test_a_multiple_that_is_not_declared_is_found(tmp_path: Path) -> None:
    component = Component("pairing", _Pairing(), (Port("x", ("batch", "width")),), ("y",), {"width": 4})
    export_component(component, tmp_path / "unet", ExportSettings(), FACTS)
    assert_agrees(component, tmp_path / "unet" / "model.onnx", 5, width=10)


def test_a_model_of_the_smallest_size_is_exported_for_larger_ones(tmp_path: Path) -> None:
    component = Component("pairing", _Pairing(), (Port("x", ("batch", "width")),), ("y",), {"width": 2}, {"width": 2})
    export_component(component, tmp_path / "unet", ExportSettings(), FACTS)
    assert_agrees(component, tmp_path / "unet" / "model.onnx", 5, width=10)


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (x * self.weight if x.sum() > 0 else x,)


def test_a_module_that_cannot_be_traced_is_an_export_error(tmp_path: Path) -> None:
    component = Component("branching", _Branching(), (Port("x", ("batch", 3)),), ("y",), {})
    with pytest.raises(ExportError, match=r"PyTorch .* cannot export branching: ."):
        export_component(component, tmp_path / "unet", ExportSettings(), FACTS)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_the_users_error(written: Callable[[str, str], Path]) -> None:
    file = written("taken", "")
    with pytest.raises(InputError, match=r"taken.* cannot be written"):
        export_component(two_faced(0.0), file / "unet", ExportSettings(), FACTS)
