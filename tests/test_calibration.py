"""Statistics and τ: exact against plain formulas, and files that say where they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import shared_data

from nemo_edge.calibration import Calibration, activations, calibrate, load_statistics
from nemo_edge.checkpoint import Checkpoint, value_layers
from nemo_edge.errors import InputError
from nemo_edge.neurons import ValueLayer
from nemo_edge.settings import LocalizationSettings

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
    monkeypatch.setattr("nemo_edge.calibration._BATCH", 2)
    statistics = calibrate(toy, PROMPTS, SETTINGS, with_threshold=False).statistics
    expected = activations(toy.unet, toy.encode(PROMPTS)["encoder_hidden_states"])
    for mean, std, values in zip(statistics.mean, statistics.std, expected, strict=True):
        torch.testing.assert_close(mean, values.mean(dim=0))
        torch.testing.assert_close(std, values.std(dim=0), atol=1e-6, rtol=1e-4)


def test_a_calibration_survives_its_file(toy: Checkpoint, tmp_path: Path) -> None:
    done: list[int] = []
    made = calibrate(toy, PROMPTS, SETTINGS, done.append)
    made.save(tmp_path / "c.safetensors")
    read = Calibration.load(tmp_path / "c.safetensors")
    assert sum(done) == len(PROMPTS) == len(read.highest)
    assert read.provenance == made.provenance
    assert read.threshold == made.threshold
    assert all(a.equal(b) for a, b in zip(read.statistics.std, made.statistics.std, strict=True))


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
