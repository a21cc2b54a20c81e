"""Mode `paper` decides as the plain reference does, whichever branch its threshold leads to."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import save_toy_sd, toy_unet
from reference import Found, localize
from transformers import CLIPTokenizer

from nemo_edge.calibration import Statistics, calibrate
from nemo_edge.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.errors import InputError
from nemo_edge.localization import Localization, Localizer, open_localizer, read_results, union
from nemo_edge.recipe import LocalizationSettings

SAMPLES = 3
SETTINGS = LocalizationSettings(samples=SAMPLES)
PROMPTS = ("saxophone falafel jubilee", "a pig on a red background")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Checkpoint:
    """A toy whose prediction hangs on the text and hardly on the noise, so that its prompts count as memorized."""
    unet = toy_unet(up_block_types=("UpBlock2D",) * 4)
    unet.conv_in.weight.mul_(0.01)
    unet.conv_in.bias.normal_(generator=torch.Generator().manual_seed(3))
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.to_out[0].weight.mul_(30)
    unet.conv_out.weight.mul_(100)
    return open_checkpoint(str(save_toy_sd(tmp_path_factory.mktemp("leaky") / "sd", tokenizer, unet)))


@pytest.fixture(scope="module")
def statistics(toy: Checkpoint) -> Statistics:
    texts = [f"a {word}" for word in ("baseball", "bell", "bus", "carrot", "crab", "crown", "duck", "fish")]
    return calibrate(toy, texts, SETTINGS, with_threshold=False).statistics


def unique(found: list[list[int]]) -> list[list[int]]:
    return [sorted(set(layer)) for layer in found]


def assert_same(found: Localization, expected: Found) -> None:
    assert found.memorized == expected.memorized
    assert [list(i) for i in found.initial.indices] == unique(expected.initial)
    assert [list(i) for i in found.refined.indices] == unique(expected.refined)
    assert found.initial_score == pytest.approx(expected.initial_score, abs=1e-5)
    assert found.refined_score == pytest.approx(expected.refined_score, abs=1e-5)


@pytest.mark.parametrize(("prompt", "threshold"), [(PROMPTS[0], 0.45), (PROMPTS[1], 0.5), (PROMPTS[1], 0.25)])
def test_decides_as_the_reference_where_the_schedule_succeeds(
    toy: Checkpoint, statistics: Statistics, prompt: str, threshold: float
) -> None:
    found = Localizer(toy, statistics, threshold, SETTINGS).localize(prompt)
    assert found.memorized
    assert not found.floor
    assert found.k > 0  # lists with duplicates
    assert 0 < len(found.refined) < len(found.initial)
    assert found.refined_score < threshold
    assert_same(found, localize(toy, statistics, prompt, threshold, SAMPLES))


def test_decides_as_the_reference_at_the_floor(toy: Checkpoint, statistics: Statistics) -> None:
    found = Localizer(toy, statistics, 0.1, SETTINGS).localize(PROMPTS[0])
    assert found.floor
    assert (found.theta, found.k) == (1.25, 15)
    assert found.initial_score > 0.1
    assert_same(found, localize(toy, statistics, PROMPTS[0], 0.1, SAMPLES))


def test_a_prompt_without_a_seed_above_the_threshold_is_not_memorized(toy: Checkpoint, statistics: Statistics) -> None:
    localizer = Localizer(toy, statistics, 1.0, SETTINGS)
    found = localizer.localize(PROMPTS[0])
    assert not found.memorized
    assert len(found.initial) == len(found.refined) == 0
    assert found.evaluations == 1
    assert localizer.detect(PROMPTS[0]) == (found.score, ())


def test_localization_leaves_the_unet_as_it_was(toy: Checkpoint, statistics: Statistics) -> None:
    before = {name: value.clone() for name, value in toy.unet.state_dict().items()}
    Localizer(toy, statistics, 0.0, SETTINGS).localize(PROMPTS[1])
    assert all(value.equal(before[name]) for name, value in toy.unet.state_dict().items())


def test_an_interrupted_run_goes_on_after_the_last_whole_line(toy: Checkpoint, statistics: Statistics, tmp_path: Path) -> None:
    results = tmp_path / "localization.jsonl"
    localizer = Localizer(toy, statistics, 1.0, SETTINGS)
    whole = localizer.localize_all(PROMPTS, results)
    lines = results.read_text().splitlines(keepends=True)
    results.write_text(lines[0] + lines[1][:40])
    assert [r.prompt for r in read_results(results)] == [PROMPTS[0]]
    again = localizer.localize_all(PROMPTS, results)
    assert again[0] == whole[0]  # taken up, its seconds included
    assert [r.prompt for r in read_results(results)] == list(PROMPTS)


def test_a_broken_line_names_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "localization.jsonl"
    path.write_text("{}\n")
    with pytest.raises(InputError, match="line 1"):
        read_results(path)


def test_union_is_the_union_of_the_refined_sets(toy: Checkpoint, statistics: Statistics) -> None:
    found = [Localizer(toy, statistics, 0.0, SETTINGS).localize(p) for p in PROMPTS]
    first, *others = (result.refined.indices for result in found)
    expected = [sorted({*layer, *(i for other in others for i in other[place])}) for place, layer in enumerate(first)]
    assert [list(layer) for layer in union(found).indices] == expected
    assert any(expected)


def test_a_statistics_file_without_a_threshold_needs_one(toy: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    calibrate(toy, ["a pig", "a bus"], SETTINGS, with_threshold=False).save(path)
    with pytest.raises(InputError, match="--threshold"):
        open_localizer(toy, path, None, SETTINGS)
    assert open_localizer(toy, path, 0.428, SETTINGS).threshold == 0.428


def test_results_of_other_inputs_are_not_taken_up(toy: Checkpoint, statistics: Statistics, tmp_path: Path) -> None:
    results = tmp_path / "localization.jsonl"
    Localizer(toy, statistics, 1.0, SETTINGS).localize_all(PROMPTS[:1], results)
    with pytest.raises(InputError, match="another"):
        Localizer(toy, statistics, 0.9, SETTINGS).localize_all(PROMPTS, results)
