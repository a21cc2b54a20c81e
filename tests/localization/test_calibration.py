"""Statistics and τ: exact against plain formulas, and files that say where they come from."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import shared_data
from safetensors import safe_open
from safetensors.torch import save_file

from nemo_edge.localization.calibration import Calibration, activations, calibrate, check_own, load_statistics, read_threshold
from nemo_edge.localization.memorization import Threshold
from nemo_edge.model.checkpoint import Checkpoint, value_layers
from nemo_edge.model.neurons import ValueLayer
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.system.errors import InputError

SETTINGS = LocalizationSettings(samples=2)
PROMPTS = [f"a {word}" for word in ("pig", "bus", "owl", "key", "bell")]
SD14 = [ValueLayer(name=f"layer {i}", width=w) for i, w in enumerate((320, 320, 640, 640, 1280, 1280, 1280))]


def test_activations_are_those_a_hook_sees_in_the_unet(toy: Checkpoint) -> None:
    text = toy.encode(["a pig"])["encoder_hidden_states"]
    seen: dict[str, torch.Tensor] = {}
    handles = [
        toy.unet.get_submodule(layer.name).register_forward_hook(lambda _m, _a, out, n=layer.name: seen.update({n: out}))
        for layer in value_layers(toy.unet)
    ]
    with torch.no_grad():
        toy.unet(torch.randn(1, 4, 16, 16), 961, text)
    for handle in handles:
        handle.remove()
    for layer, values in zip(value_layers(toy.unet), activations(toy.unet, text), strict=True):
        assert values[0].equal(seen[layer.name][0].abs().mean(dim=0))


def test_streaming_moments_are_mean_and_unbiased_deviation(toy: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_edge.localization.calibration._BATCH", 2)
    statistics = calibrate(toy, PROMPTS, SETTINGS, with_threshold=False).statistics
    expected = activations(toy.unet, toy.encode(PROMPTS)["encoder_hidden_states"])
    for mean, std, values in zip(statistics.mean, statistics.std, expected, strict=True):
        torch.testing.assert_close(mean, values.mean(dim=0))
        torch.testing.assert_close(std, values.std(dim=0), atol=1e-6, rtol=1e-4)


def test_a_calibration_survives_its_file(demo_checkpoint: Checkpoint, tmp_path: Path) -> None:
    done: list[int] = []
    made = calibrate(demo_checkpoint, PROMPTS, SETTINGS, done.append)
    made.save(tmp_path / "c.safetensors")
    assert made.threshold is not None
    assert read_threshold(tmp_path / "c.safetensors") == made.threshold.value
    read = Calibration.load(tmp_path / "c.safetensors")
    assert sum(done) == len(PROMPTS) == len(read.highest)
    assert read.provenance == made.provenance
    assert read.threshold == made.threshold
    assert all(a.equal(b) for a, b in zip(read.statistics.std, made.statistics.std, strict=True))


def test_how_many_general_prompts_lie_above_the_threshold_is_a_rate(toy: Checkpoint) -> None:
    none = calibrate(toy, PROMPTS, SETTINGS, with_threshold=False)
    assert (none.above, none.above_rate) == (None, None)
    made = replace(none, threshold=Threshold(0.5, 0.2), highest=(0.1, 0.7, 0.71, 0.9, 0.3))
    assert (made.above, made.above_rate) == (2, 0.4)  # one at τ is not above it


def test_a_threshold_that_is_no_score_is_refused_where_it_is_computed(toy: Checkpoint) -> None:
    with pytest.raises(InputError, match=r"calibration: τ = 0, expected .* calibrate on other general prompts, or set τ"):
        calibrate(toy, PROMPTS, SETTINGS)  # no noise of this model is like another


@pytest.mark.parametrize("place", ["text", "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"])
@pytest.mark.parametrize("with_threshold", [True, False])
def test_weights_that_are_no_numbers_end_it_in_one_line(toy: Checkpoint, place: str, with_threshold: bool) -> None:
    (encoder,), unet = copy.deepcopy(toy.text_encoders), copy.deepcopy(toy.unet)
    if place == "text":
        encoder.get_input_embeddings().weight.data[:] = nan
    else:
        unet.get_submodule(place).weight[0, 0] = nan
    broken, reason = replace(toy, unet=unet, text_encoders=(encoder,)), r"value activations of the prompt 'a pig': \d+ of 80 are not finite"
    with pytest.raises(InputError, match=reason) as caught:
        calibrate(broken, PROMPTS, SETTINGS, with_threshold=with_threshold)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bias", [nan, inf])
def test_noise_that_is_no_number_ends_it_in_one_line(toy: Checkpoint, bias: float) -> None:
    unet = copy.deepcopy(toy.unet)
    unet.conv_out.bias.fill_(bias)
    with pytest.raises(InputError, match="memorization scores of the prompt 'a pig': 1 of 1 are not finite numbers"):
        calibrate(replace(toy, unet=unet), PROMPTS, SETTINGS)


def test_a_file_of_another_score_is_refused(toy: Checkpoint, tmp_path: Path) -> None:
    """Schema 1: τ of a score that averaged over the border too."""
    path = tmp_path / "c.safetensors"
    calibrate(toy, PROMPTS, SETTINGS, with_threshold=False).save(path)
    edited(path, lambda _, provenance: provenance.update(schema_version=1))
    with pytest.raises(InputError, match=r"have schema 1, expected 2, whose τ is of the published score: make it anew with `nemo-edge cal"):
        Calibration.load(path)


def test_statistics_of_other_weights_are_refused(toy: Checkpoint, toy_sdxl: Checkpoint, tmp_path: Path) -> None:
    """Their τ says nothing of these, however alike the two are built."""
    path = tmp_path / "c.safetensors"
    calibrate(toy, PROMPTS, SETTINGS, with_threshold=False).save(path)
    check_own(path, toy)
    with pytest.raises(InputError, match=r"were measured on another checkpoint .*make it anew with `nemo-edge calibrate`"):
        check_own(path, toy_sdxl)


Edit = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]


def edited(path: Path, edit: Edit) -> Path:
    """A statistics file with its tensors and its provenance changed."""
    with safe_open(path, "pt") as file:
        facts, tensors = json.loads(file.metadata()["nemo_edge"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    edit(tensors, facts["provenance"])
    save_file(tensors, path, {"nemo_edge": json.dumps(facts)})
    return path


@pytest.mark.parametrize("tau", [(nan, 0.1), (0.4, nan), (inf, 0.1), (0.4, inf), (0.0, 0.0), (0.9, 0.1), (0.5, -0.1), (-0.5, 0.1)])
def test_a_threshold_of_a_file_that_cannot_be_used_is_refused(toy: Checkpoint, tmp_path: Path, tau: tuple[float, float]) -> None:
    calibrate(toy, PROMPTS, SETTINGS, with_threshold=False).save(tmp_path / "s.safetensors")
    values = dict(zip(("threshold_mean", "threshold_std"), tau, strict=True))
    path = edited(tmp_path / "s.safetensors", lambda _, provenance: provenance.update(values))
    with pytest.raises(InputError, match=r"s\.safetensors: .*τ.*expected a finite number.* make it anew with `nemo-edge cal") as caught:
        read_threshold(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "value"), [("mean", nan), ("mean", inf), ("std", nan), ("std", inf), ("std", -1.0)])
@pytest.mark.parametrize("official", [True, False])
def test_statistics_that_are_no_numbers_are_refused(toy: Checkpoint, tmp_path: Path, kind: str, value: float, official: bool) -> None:
    layers = value_layers(toy.unet)
    if official:
        path, both = tmp_path / "s.pt", {name: [torch.ones(layer.width) for layer in layers] for name in ("mean", "std")}
        torch.save(list(both.values()), path)
        load_statistics(path, layers)
        both[kind][2][3] = value
        torch.save(list(both.values()), path)
    else:
        path = tmp_path / "s.safetensors"
        calibrate(toy, PROMPTS, SETTINGS, with_threshold=False).save(path)
        edited(path, lambda tensors, _: tensors[f"{kind}.{layers[2].name}"].__setitem__(3, value))
    with pytest.raises(InputError, match=rf"of 1 neurons of value layer 2 cannot be used \(the first is neuron 3: {value:g}\), expected"):
        load_statistics(path, layers)


def test_a_neuron_that_never_varied_is_no_fault_of_statistics(tmp_path: Path) -> None:
    torch.save([[torch.zeros(layer.width) for layer in SD14] for _ in ("mean", "std")], tmp_path / "still.pt")
    assert all(std.eq(0).all() for std in load_statistics(tmp_path / "still.pt", SD14).std)


def test_all_layers_are_measured_on_request(toy: Checkpoint) -> None:
    settings = LocalizationSettings(samples=2, layers="all")
    assert len(calibrate(toy, PROMPTS, settings, with_threshold=False).statistics.layers) == 16


def test_one_prompt_is_too_few(toy: Checkpoint) -> None:
    with pytest.raises(InputError, match="two general prompts"):
        calibrate(toy, ["a pig"], SETTINGS)


def test_the_official_statistics_are_read() -> None:
    statistics = load_statistics(shared_data("statistics_additional_laion_prompts_v1_4.pt"), SD14)
    assert [len(mean) for mean in statistics.mean] == [layer.width for layer in SD14]
    assert [round(float(mean.median()), 2) for mean in statistics.mean] == [0.46, 0.26, 0.48, 0.34, 0.63, 0.63, 0.79]


def test_statistics_of_another_model_are_refused(toy: Checkpoint, tmp_path: Path) -> None:
    torch.save([[torch.ones(layer.width) for layer in SD14] for _ in ("mean", "std")], tmp_path / "official.pt")
    assert [len(mean) for mean in load_statistics(tmp_path / "official.pt", SD14).mean] == [layer.width for layer in SD14]
    with pytest.raises(InputError, match="another model"):
        load_statistics(tmp_path / "official.pt", value_layers(toy.unet))


def test_a_pickle_that_is_more_than_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"run": Path("anything")}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match="official"):
        load_statistics(tmp_path / "evil.pt", SD14)


def test_a_pt_file_of_junk_is_refused(tmp_path: Path) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk\n")
    with pytest.raises(InputError, match=r"junk\.pt is not a statistics file of the official code"):
        load_statistics(tmp_path / "junk.pt", SD14)


def test_a_file_that_is_not_statistics_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"not a tensor")
    with pytest.raises(InputError, match="calibrate"):
        load_statistics(tmp_path / "x.safetensors", SD14)
