"""One part of a checkpoint at a time: its type, the fallback to float32, what is kept, and that a process of its own changes nothing."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from conftest import save_toy_sd, save_toy_sdxl, toy_unet
from diffusers import AutoencoderKL
from rebuilding import Record
from safetensors.numpy import load_file
from transformers import CLIPTokenizer

from nemo_edge.export import parts, production
from nemo_edge.export.parts import answer_parts, export_part, layers_of, outline
from nemo_edge.export.production import Chosen, PartJob, export_stage
from nemo_edge.graph.agreement import TOLERANCES, Agreement, Exported
from nemo_edge.graph.valueweights import SILENCED_ROWS
from nemo_edge.model.checkpoint import open_checkpoint, value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import CheckpointSettings, ExportSettings
from nemo_edge.system.errors import ExportError, InputError
from nemo_edge.system.progress import Progress

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
FACTS = {"version": "1"}
FP16 = ExportSettings(dtype="fp16", variants=("baked",))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> CheckpointSettings:
    """A checkpoint of two value layers, which the exporter takes in seconds."""
    unet = toy_unet(
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
    )
    return CheckpointSettings(path=str(save_toy_sd(tmp_path_factory.mktemp("parts") / "sd", tokenizer, unet)))


def some(source: CheckpointSettings) -> NeuronSet:
    layers = layers_of(source, "paper", Progress())
    return NeuronSet.from_lists(layers, [range(0, layer.width, 3) for layer in layers])


def job(source: CheckpointSettings, place: str, folder: Path, settings: ExportSettings = FP16) -> PartJob:
    return PartJob(source, place, some(source), settings, folder, FACTS)


def kinds(path: Path) -> set[int]:
    """The types of a graph's matrices, and of its borders as far as they are no integers."""
    graph = onnx.load(str(path), load_external_data=False).graph
    found = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) in (2, 4) and min(tensor.dims) > 1}
    return (found | {v.type.tensor_type.elem_type for v in [*graph.input, *graph.output]}) & {FLOAT, HALF}


def alone(source: CheckpointSettings, place: str, folder: Path, settings: ExportSettings = FP16) -> Exported:
    """Export one part; the decoder is asked the random feeds alone where no UNet has been asked before."""
    (folder / ".answers").mkdir(exist_ok=True)
    latents = folder / ".answers" / "latents.safetensors"
    if not latents.is_file():
        parts.write_cases(latents, [])
    asked = job(source, place, folder, settings)
    chosen = answer_parts([asked], folder / ".answers", Progress())
    return export_part(asked, chosen[place], folder / ".answers", None, Progress())


def with_vae(source: CheckpointSettings, folder: Path, factor: float) -> CheckpointSettings:
    """The checkpoint with a decoder whose first values are `factor` times as large, and normed before they leave."""
    opened = open_checkpoint(source.path)
    vae: AutoencoderKL = opened.vae  # type: ignore[assignment]
    with torch.no_grad():
        for tensor in (vae.decoder.conv_in.weight, vae.decoder.conv_in.bias):
            tensor.mul_(factor)
    for path in Path(source.path).rglob("*"):
        place = folder / path.relative_to(source.path)
        place.mkdir(parents=True, exist_ok=True) if path.is_dir() else place.write_bytes(path.read_bytes())
    vae.save_pretrained(folder / "vae")
    return CheckpointSettings(path=str(folder))


def test_the_outline_is_a_bundles_and_layers_need_no_weights(source: CheckpointSettings, toy_folder: Path, tmp_path: Path) -> None:
    outline(source, tmp_path, ("masked",), Progress())
    assert sorted(p.parent.name for p in tmp_path.glob("*/config.json")) == ["text_encoder", "unet_masked", "vae_decoder"]
    assert not list(tmp_path.rglob("*.safetensors"))
    larger = CheckpointSettings(path=str(toy_folder))
    assert layers_of(larger, "all", Progress()) == value_layers(open_checkpoint(larger.path).unet, "all")


def test_a_part_is_in_the_recipes_type_and_its_silenced_rows_are_kept(source: CheckpointSettings, tmp_path: Path) -> None:
    exported = alone(source, "unet", tmp_path, ExportSettings(dtype="fp16", variants=("baked",), batch=1))
    assert (exported.component, exported.model, exported.dtype, exported.note) == ("unet", "unet/model.onnx", "fp16", "")
    assert kinds(tmp_path / "unet/model.onnx") == {HALF, FLOAT}, "the time step is float32 in any type"
    unet, kept = open_checkpoint(source.path).unet, load_file(tmp_path / SILENCED_ROWS)
    for layer, rows in some(source).items():
        stored = unet.get_submodule(layer.name).weight[list(rows)].half().numpy()
        assert np.array_equal(kept[f"{layer.name}.weight"], stored)
        assert np.abs(stored).min() >= 0
    assert len(kept) == len(some(source).layers)


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_the_baked_unet_is_made_from_the_masked_one(source: CheckpointSettings, tmp_path: Path, dtype: str) -> None:
    """It has the operators of one that was traced, its weights bit by bit, and answers the same."""
    settings, answers = ExportSettings(dtype=dtype, batch=1), tmp_path / ".answers"
    alone(source, "unet", tmp_path, settings)
    rows = load_file(tmp_path / SILENCED_ROWS)
    (made := tmp_path / "made").mkdir()
    masked, baked = (job(source, place, made, settings) for place in ("unet_masked", "unet"))
    chosen = answer_parts([masked, baked], answers, Progress())
    first = export_part(masked, chosen["unet_masked"], answers, None, Progress())
    with patch.object(parts, "_exported", side_effect=AssertionError("it was traced")):
        exported = export_part(baked, chosen["unet"], answers, first, Progress())
    assert (exported.component, exported.model, exported.dtype) == ("unet", "unet/model.onnx", dtype)
    traced, own = (onnx.load(str(folder / "unet/model.onnx")) for folder in (tmp_path, made))
    assert Counter(node.op_type for node in own.graph.node) == Counter(node.op_type for node in traced.graph.node)
    assert sorted(t.raw_data for t in own.graph.initializer) == sorted(t.raw_data for t in traced.graph.initializer)
    assert [port.name for port in own.graph.input] == [port.name for port in traced.graph.input]
    assert {e.key: e.value for e in own.metadata_props} == {e.key: e.value for e in traced.metadata_props}
    kept = load_file(made / SILENCED_ROWS)
    assert kept.keys() == rows.keys()
    assert all(np.array_equal(kept[key], rows[key]) for key in rows)


def test_a_masked_unet_of_another_type_is_not_taken(source: CheckpointSettings, tmp_path: Path) -> None:
    (answers := tmp_path / ".answers").mkdir()
    baked = job(source, "unet", tmp_path, ExportSettings(batch=2))
    chosen = answer_parts([baked], answers, Progress())
    other = Exported(component="unet", model="unet_masked/model.onnx", dtype="fp16", opset=20, agreement=(), write_s=0, verify_s=0)
    assert export_part(baked, chosen["unet"], answers, other, Progress()).dtype == "fp32"


def test_a_decoder_that_overflows_fp16_stays_in_fp32_and_says_which_module(source: CheckpointSettings, tmp_path: Path) -> None:
    exported = alone(with_vae(source, tmp_path / "model", 1e6), "vae_decoder", tmp_path)
    assert (exported.dtype, kinds(tmp_path / "vae_decoder/model.onnx")) == ("fp32", {FLOAT})
    assert exported.note.startswith("vae_decoder stays in fp32, fp16 holds no more than 6.6e+04: decoder.conv_in yields ")
    assert all(a.passed and a.tolerance == 1e-4 for a in exported.agreement)


def test_a_checkpoint_that_gives_no_numbers_itself_is_named(source: CheckpointSettings, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    unet = open_checkpoint(source.path).unet
    unet.conv_out.bias.fill_(float("nan"))
    broken = CheckpointSettings(path=str(save_toy_sd(tmp_path / "broken", tokenizer, unet)))
    with pytest.raises(InputError, match=r"unet: the checkpoint itself gives numbers in out_sample that are not finite, in eager float32"):
        answer_parts([job(broken, "unet", tmp_path, ExportSettings())], tmp_path, Progress())


def test_a_component_that_is_to_stay_in_fp32_does(source: CheckpointSettings, tmp_path: Path) -> None:
    settings = ExportSettings(dtype="fp16", fp32=("text_encoder",))
    exported = alone(source, "text_encoder", tmp_path, settings)
    assert (exported.dtype, exported.note, kinds(tmp_path / "text_encoder/model.onnx")) == ("fp32", "", {FLOAT})
    (tmp_path / "half").mkdir()
    assert alone(source, "text_encoder", tmp_path / "half").dtype == "fp16"
    assert kinds(tmp_path / "half/text_encoder/model.onnx") == {HALF}


@pytest.mark.parametrize(("upcast", "kind"), [(True, FLOAT), (False, HALF)])
def test_the_decoder_of_xl_stays_in_fp32_where_its_checkpoint_says_so(
    tokenizer: CLIPTokenizer, tmp_path: Path, upcast: bool, kind: int
) -> None:
    folder = save_toy_sdxl(tmp_path / "xl", tokenizer)
    config = (folder / "vae/config.json").read_text()
    assert '"force_upcast": true' in config
    (folder / "vae/config.json").write_text(config.replace('"force_upcast": true', f'"force_upcast": {str(upcast).lower()}'))
    exported = alone(CheckpointSettings(path=str(folder)), "vae_decoder", tmp_path)
    assert (exported.dtype, kinds(tmp_path / "vae_decoder/model.onnx")) == ("fp32" if upcast else "fp16", {kind})


def test_what_is_finite_and_wrong_is_refused_with_its_remedy(
    source: CheckpointSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tolerance is met: the two types differ, as they always do."""
    monkeypatch.setitem(TOLERANCES, "fp16", 1e-7)
    with pytest.raises(ExportError, match=r"^vae_decoder: output sample at batch 3 .* tensor that is off by .*try export.fp32 = \['vae_de"):
        alone(source, "vae_decoder", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".answers"]


def test_a_graph_in_fp16_is_asked_the_way_to_a_picture(source: CheckpointSettings, tmp_path: Path) -> None:
    """Every part is: the text encoder a prompt, the UNet the steps of a trajectory, the decoder the latents at its end."""
    jobs = [job(source, place, tmp_path, FP16) for place in ("text_encoder", "unet_masked", "vae_decoder")]
    chosen = answer_parts(jobs, tmp_path, Progress())
    assert set(chosen.values()) == {Chosen("fp16")}
    asked = {job.place: parts.read_cases(tmp_path / f"{job.place}.safetensors") for job in jobs}
    assert [[case.name for case in cases] for cases in asked.values()] == [
        ["batch 1", "batch 3", "a prompt"],
        ["batch 1", "the trajectory"],
        ["batch 3", "its latents"],
    ]
    along, latents = asked["unet_masked"][-1], asked["vae_decoder"][-1]
    assert along.feed["value_mask"].min() == 1
    assert len(along.expected["out_sample"]) == 2 * 3
    assert len(latents.expected["sample"]) == 1
    assert np.isfinite(latents.expected["sample"]).all()


def test_a_file_that_yields_no_numbers_is_made_again_in_fp32(source: CheckpointSettings, tmp_path: Path) -> None:
    """A decoder that overflows fp16, of which nobody noticed that it does in eager's values."""
    overflowing, asked = with_vae(source, tmp_path / "model", 1e6), tmp_path / "answers"
    asked.mkdir()
    parts.write_cases(asked / "latents.safetensors", [])
    one = job(overflowing, "vae_decoder", tmp_path)
    assert answer_parts([one], asked, Progress())["vae_decoder"].dtype == "fp32"
    exported = export_part(one, Chosen("fp16"), asked, None, Progress())
    assert (exported.dtype, kinds(tmp_path / "vae_decoder/model.onnx")) == ("fp32", {FLOAT})
    assert "is not finite" in exported.note
    assert all(a.passed and a.tolerance == 1e-4 for a in exported.agreement)


def asked(agreement: Agreement) -> Agreement:
    """What was compared, without the figures, whose last digits depend on the number of threads."""
    assert agreement.passed
    return agreement.model_copy(update={"largest_error": 0, "largest_value": 0})


@pytest.mark.slow
def test_processes_of_their_own_write_the_same_bytes(source: CheckpointSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(name: str) -> tuple[dict[str, str], list[Exported], list[str]]:
        (folder := tmp_path / name).mkdir()
        record = Record()
        settings = ExportSettings(dtype="fp16")
        made = export_stage(source, settings, some(source), folder, FACTS, record)
        found = [e.model_copy(update={"write_s": 0, "verify_s": 0, "agreement": tuple(map(asked, e.agreement))}) for e in made]
        return {p.relative_to(folder).as_posix(): digest(p) for p in folder.rglob("*") if p.is_file()}, found, record.tasks

    here = export("here")
    monkeypatch.setattr(production, "_LARGE_BYTES", 0)
    assert export("separate") == here
    assert [e.model for e in here[1]] == [f"{p}/model.onnx" for p in ("text_encoder", "unet", "unet_masked", "vae_decoder")]
    assert not [name for name in here[0] if name.startswith(".")]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
