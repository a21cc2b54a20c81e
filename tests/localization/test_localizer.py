"""Mode `paper` decides as the plain reference does, whichever branch its threshold leads to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_toy_sd, toy_unet
from reference import Found, blocked_score, localize, noise_difference, similarity
from transformers import CLIPTokenizer

from nemo_edge.localization import _decisions as decisions
from nemo_edge.localization.calibration import Statistics, calibrate
from nemo_edge.localization.localizer import Localization, Localizer, open_localizer, read_results, union
from nemo_edge.localization.multiscale import ROUNDING
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.system.errors import InputError

SAMPLES = 3
PAIRS = ((0, 1), (0, 2), (1, 2))
SETTINGS = LocalizationSettings(samples=SAMPLES)
PROMPTS = ("saxophone falafel jubilee", "a pig on a red background")
TEXTS = (*PROMPTS, "a bus")


def leaky(folder: Path, tokenizer: CLIPTokenizer, **changes: object) -> Checkpoint:
    """A toy whose prediction hangs on the text and hardly on the noise, so that its prompts count as memorized."""
    unet = toy_unet(up_block_types=("UpBlock2D",) * 4, **changes)
    unet.conv_in.weight.mul_(0.01)
    unet.conv_in.bias.normal_(generator=torch.Generator().manual_seed(3))
    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            module.to_out[0].weight.mul_(30)
    unet.conv_out.weight.mul_(100)
    return open_checkpoint(str(save_toy_sd(folder / "sd", tokenizer, unet)))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Checkpoint:
    return leaky(tmp_path_factory.mktemp("leaky"), tokenizer)


@pytest.fixture(scope="module")
def statistics(toy: Checkpoint) -> Statistics:
    texts = [f"a {word}" for word in ("baseball", "bell", "bus", "carrot", "crab", "crown", "duck", "fish")]
    return calibrate(toy, texts, SETTINGS, with_threshold=False).statistics


def unique(found: list[list[int]]) -> list[list[int]]:
    return [sorted(set(layer)) for layer in found]


def assert_same(found: Localization, expected: Found, tolerance: float = 1e-5) -> None:
    assert found.memorized == expected.memorized
    assert [list(i) for i in found.initial.indices] == unique(expected.initial)
    assert [list(i) for i in found.refined.indices] == unique(expected.refined)
    assert found.initial_score == pytest.approx(expected.initial_score, abs=tolerance)
    assert found.refined_score == pytest.approx(expected.refined_score, abs=tolerance)


@pytest.mark.parametrize(("prompt", "threshold"), [(PROMPTS[0], 0.35), (PROMPTS[1], 0.5), (PROMPTS[1], 0.25)])
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


def test_selects_every_neuron_of_narrow_layers_as_the_reference(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    narrow = leaky(tmp_path, tokenizer, seed=2, block_out_channels=(8, 8, 8, 8))
    statistics = calibrate(narrow, ["a baseball", "a bell", "a bus"], SETTINGS, with_threshold=False).statistics
    found = Localizer(narrow, statistics, 0.09, SETTINGS).localize(PROMPTS[0])
    assert (found.floor, found.k) == (True, 8)
    assert_same(found, localize(narrow, statistics, PROMPTS[0], 0.09, SAMPLES))


def test_a_prompt_without_a_seed_above_the_threshold_is_not_memorized(toy: Checkpoint, statistics: Statistics) -> None:
    localizer = Localizer(toy, statistics, 0.99, SETTINGS)
    found = localizer.localize(PROMPTS[0])
    assert not found.memorized
    assert len(found.initial) == len(found.refined) == 0
    assert (found.evaluations, found.samples, found.closest) == (1, SAMPLES, None)
    assert float(localizer.examine(PROMPTS[0]).scores_S.max()) == found.score


def test_localization_leaves_the_unet_as_it_was(toy: Checkpoint, statistics: Statistics) -> None:
    before = {name: value.clone() for name, value in toy.unet.state_dict().items()}
    Localizer(toy, statistics, 1e-6, SETTINGS).localize(PROMPTS[1])
    assert all(value.equal(before[name]) for name, value in toy.unet.state_dict().items())


def test_an_interrupted_run_goes_on_after_the_last_whole_line(toy: Checkpoint, statistics: Statistics, tmp_path: Path) -> None:
    results = tmp_path / "localization.jsonl"
    localizer = Localizer(toy, statistics, 0.99, SETTINGS)
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
    found = [Localizer(toy, statistics, 1e-6, SETTINGS).localize(p) for p in PROMPTS]
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
    Localizer(toy, statistics, 0.99, SETTINGS).localize_all(PROMPTS[:1], results)
    with pytest.raises(InputError, match="another"):
        Localizer(toy, statistics, 0.9, SETTINGS).localize_all(PROMPTS, results)


@pytest.fixture(scope="module")
def plain(toy: Checkpoint, statistics: Statistics) -> dict[float, list[Found]]:
    """The reference's results, with the schedule's success and at its floor."""
    return {threshold: [localize(toy, statistics, text, threshold, SAMPLES) for text in TEXTS] for threshold in (0.45, 0.1)}


@pytest.mark.parametrize(("rows", "together"), [(1, 1), (3, 1), (64, 1), (7, 8), (64, 8)])
def test_what_runs_together_changes_nothing(
    toy: Checkpoint, statistics: Statistics, plain: dict[float, list[Found]], rows: int, together: int
) -> None:
    for threshold, expected in plain.items():
        settings = SETTINGS.model_copy(update={"rows": rows, "prompts": together})
        found = Localizer(toy, statistics, threshold, settings).localize_all(TEXTS)
        assert [r.prompt for r in found] == list(TEXTS)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


def test_the_reference_runs_what_the_official_code_runs(toy: Checkpoint, statistics: Statistics) -> None:
    """2(I + L + N + 4) batches, and I single rows; ours runs each set once, and no seed that the filter left out.

    Sets are asked for one after the other here: of those asked for together, some may not be used."""
    plain = localize(toy, statistics, PROMPTS[1], 0.25, SAMPLES)
    assert plain.layers > 0
    assert plain.batches == 2 * (plain.steps + plain.layers + plain.candidates + 4)
    assert plain.samples == plain.batches * SAMPLES + plain.steps
    found = Localizer(toy, statistics, 0.25, SETTINGS.model_copy(update={"rows": SAMPLES})).localize(PROMPTS[1])
    assert found.seeds == tuple(plain.kept)
    assert found.evaluations <= 1 + plain.steps + plain.layers + plain.candidates
    assert found.samples < plain.samples / 2


@pytest.mark.parametrize("threshold", [0.45, 0.25, 0.1])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_fast_mode_finds_a_1_minimal_set_by_the_reference(
    toy: Checkpoint, statistics: Statistics, prompt: str, threshold: float
) -> None:
    settings = SETTINGS.model_copy(update={"mode": "fast"})
    found, paper = (Localizer(toy, statistics, threshold, s).localize(prompt) for s in (settings, SETTINGS))
    limit = found.initial_score if found.floor else threshold
    assert found.memorized
    assert found.refined_score <= limit
    assert found.samples < paper.samples
    lists = [list(own) for own in found.refined.indices]
    assert blocked_score(toy, prompt, lists, SAMPLES, list(found.seeds)) == pytest.approx(found.refined_score, abs=1e-5)
    for layer, own in enumerate(lists):
        for neuron in own:
            fewer = [[n for n in other if (i, n) != (layer, neuron)] for i, other in enumerate(lists)]
            assert blocked_score(toy, prompt, fewer, SAMPLES, list(found.seeds)) >= limit - 1e-5


@pytest.mark.parametrize("mode", ["paper", "fast"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_narrow_type_changes_no_decision(toy: Checkpoint, statistics: Statistics, mode: str, dtype: str) -> None:
    """What is nearer to the limit than the type is precise is decided in float32, and recorded."""
    for threshold in (0.45, 0.1):
        wide, narrow = (
            Localizer(toy, statistics, threshold, SETTINGS.model_copy(update={"mode": mode, "dtype": d, "channels_last": d != "fp32"}))
            for d in ("fp32", dtype)
        )
        for prompt in PROMPTS:
            one, other = wide.localize(prompt), narrow.localize(prompt)
            assert (one.initial, one.refined, one.seeds, one.floor) == (other.initial, other.refined, other.seeds, other.floor)
            assert other.refined_score == pytest.approx(one.refined_score, abs=0.03)
    assert all(p.dtype == torch.float32 for p in toy.unet.parameters())


def test_close_decisions_are_made_again_in_float32(
    toy: Checkpoint, statistics: Statistics, plain: dict[float, list[Found]], monkeypatch: pytest.MonkeyPatch
) -> None:
    firm = Localizer(toy, statistics, 0.45, SETTINGS).localize(PROMPTS[0])
    assert firm.exact == 0
    assert firm.closest is not None
    assert ROUNDING < firm.closest < 1
    monkeypatch.setitem(decisions._MARGIN, "fp32", 10 * firm.closest)
    found = Localizer(toy, statistics, 0.45, SETTINGS).localize(PROMPTS[0])
    assert found.exact > 0
    assert found.closest == pytest.approx(firm.closest, abs=1e-5)
    assert_same(found, plain[0.45][0])


def test_decisions_within_rounding_of_the_limit_fall_as_the_references(toy: Checkpoint, statistics: Statistics) -> None:
    """Scores that the reference compares are made the limit in turn, and the float32 numbers beside them: near ties both ways."""
    settings = SETTINGS.model_copy(update={"initial_theta": 4.5, "initial_k": 2})
    base = localize(toy, statistics, PROMPTS[0], 0.35, SAMPLES, theta=4.5, k=2)
    seen = [base.initial_score, base.refined_score, min(seed_highest(toy))]
    limits = [float(np.nextafter(np.float32(s), np.float32(to))) for s in seen for to in (0, 1)] + seen
    exact = 0
    for limit in limits:
        found = Localizer(toy, statistics, limit, settings).localize(PROMPTS[0])
        expected = localize(toy, statistics, PROMPTS[0], limit, SAMPLES, theta=4.5, k=2)
        assert found.seeds == tuple(expected.kept)
        assert_same(found, expected, tolerance=ROUNDING)
        exact += found.exact
    assert exact > 0


def seed_highest(checkpoint: Checkpoint) -> list[float]:
    """What the reference compares with τ to choose the seeds."""
    delta = noise_difference(checkpoint, PROMPTS[0], [], SAMPLES)
    scores = similarity(*(delta[i] for i in torch.combinations(torch.arange(SAMPLES)).T))
    return [float(scores[[place for place, pair in enumerate(PAIRS) if seed in pair]].max()) for seed in range(SAMPLES)]


def test_a_neuron_that_never_varied_is_an_outlier_when_it_does(toy: Checkpoint, statistics: Statistics) -> None:
    still = replace(statistics, std=(torch.zeros_like(statistics.std[0]), *statistics.std[1:]))
    for mode in ("paper", "fast"):
        found = Localizer(toy, still, 0.45, SETTINGS.model_copy(update={"mode": mode})).localize(PROMPTS[0])
        assert found.initial.counts[0] == statistics.layers[0].width
        if mode == "paper":
            assert_same(found, localize(toy, still, PROMPTS[0], 0.45, SAMPLES))


@pytest.mark.parametrize("words", [0, 1, 75, 90])
def test_prompts_of_every_length_are_localized(toy: Checkpoint, statistics: Statistics, words: int) -> None:
    prompt = " ".join(["pig"] * words)
    localizer = Localizer(toy, statistics, 0.45, SETTINGS)
    assert_same(localizer.localize(prompt), localize(toy, statistics, prompt, 0.45, SAMPLES))


def test_what_a_long_prompt_loses_is_said(toy: Checkpoint, statistics: Statistics) -> None:
    localizer = Localizer(toy, statistics, 0.45, SETTINGS)
    length = toy.config.tokenizers[0].model_max_length
    fits = " ".join(["pig"] * 2)
    assert localizer.checkpoint.config.warnings([fits, ""]) == []
    long = " ".join(["pig"] * length + ["and", "a", "bus"])
    [warning] = localizer.checkpoint.config.warnings([fits, long])
    assert warning.startswith("the prompt 'pig pig pig")
    assert "longer than the text encoder reads; left out: '" in warning
    assert warning.endswith("bus'")


def test_layers_of_any_unet_are_searched(toy_sdxl: Checkpoint, demo_checkpoint: Checkpoint) -> None:
    """Blocks of several transformers, and all layers: the same decisions as one set after the other by the whole UNet."""
    for checkpoint, layers in ((toy_sdxl, "paper"), (demo_checkpoint, "all")):
        settings = LocalizationSettings(samples=3, layers=layers)
        own = calibrate(checkpoint, ["a bell", "a bus", "a crab", "a duck"], settings, with_threshold=False).statistics
        alone = settings.model_copy(update={"rows": 3, "prompts": 1})
        one, other = (Localizer(checkpoint, own, 0.2, s).localize_all(PROMPTS) for s in (settings, alone))
        for a, b in zip(one, other, strict=True):
            assert (a.initial, a.refined, a.floor) == (b.initial, b.refined, b.floor)


@pytest.mark.parametrize(
    ("seed", "factors", "kinds"),
    [
        (0, (0.95,), {(True, False)}),
        pytest.param(1, (0.6, 1.01), {(True, True), (False, False)}, marks=pytest.mark.slow),
    ],
)
def test_decides_as_the_reference_at_the_official_size(
    seed: int, factors: tuple[float, ...], kinds: set[tuple[bool, bool]], tmp_path: Path, tokenizer: CLIPTokenizer
) -> None:
    """64 × 64 latents and ε-prediction, the only ones the official code knows."""
    checkpoint = leaky(tmp_path, tokenizer, seed=seed, sample_size=64, attention_head_dim=8)
    settings = LocalizationSettings(samples=2)
    own = calibrate(checkpoint, [f"a {word}" for word in ("bell", "bus", "crab", "duck")], settings, with_threshold=False).statistics
    score = float(Localizer(checkpoint, own, 0.99, settings).examine(PROMPTS[0]).scores_S.max())
    found = [Localizer(checkpoint, own, factor * score, settings).localize(PROMPTS[0]) for factor in factors]
    for one in found:
        assert_same(one, localize(checkpoint, own, PROMPTS[0], one.threshold, 2), tolerance=1e-4)
    assert {(one.memorized, one.floor) for one in found} == kinds
