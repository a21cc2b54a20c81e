"""A stream of prompts is scored as each alone is, however many share a forward, and goes on where it stopped."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_toy_sd
from reference import noise_difference, similarity
from transformers import CLIPTokenizer

from nemo_edge.backends.torch import open_runner
from nemo_edge.localization.detection import Detection, Detector, read_detections
from nemo_edge.localization.memorization import NoiseProbe, seed_scores
from nemo_edge.localization.multiscale import pairwise_scores
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.system.errors import InputError

SETTINGS = LocalizationSettings(samples=3)
PROMPTS = ["a pig", "saxophone falafel jubilee", "", "a bus on a red background", "a pig"]


@pytest.fixture(scope="module")
def v_prediction(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Checkpoint:
    return open_checkpoint(str(save_toy_sd(tmp_path_factory.mktemp("v") / "sd", tokenizer, prediction_type="v_prediction")))


@pytest.fixture(params=["toy", "toy_sdxl", "v_prediction", "demo_checkpoint"])
def checkpoint(request: pytest.FixtureRequest) -> Checkpoint:
    found: Checkpoint = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("rows", [2, 7, 64])
def test_every_prompt_is_scored_as_it_is_alone(checkpoint: Checkpoint, rows: int) -> None:
    found = Detector(checkpoint, 0.3, SETTINGS.model_copy(update={"rows": rows})).detect_all(PROMPTS)
    probe, unet = NoiseProbe.of(checkpoint.config, SETTINGS), open_runner(checkpoint.unet_component())
    nothing = alone(checkpoint, probe, "")
    for prompt, each in zip(PROMPTS, found, strict=True):
        conditioning = {name: value.float().cpu().numpy() for name, value in checkpoint.encode([prompt]).items()}
        scores_S = seed_scores(pairwise_scores(probe(unet, conditioning)), 3)
        assert each.prompt == prompt
        assert each.score == pytest.approx(float(scores_S.max()), abs=1e-5)
        assert each.seeds == tuple(int(s) for s in (scores_S > 0.3).nonzero().flatten())
        assert each.memorized == bool(each.seeds)
        expected = (alone(checkpoint, probe, prompt) - nothing).flatten(1).norm(dim=1)
        assert each.norms == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("prompt", ["a pig", "saxophone falafel jubilee"])
def test_a_score_within_rounding_of_the_threshold_decides_as_the_references(demo_checkpoint: Checkpoint, prompt: str) -> None:
    """Of a prompt beside others: τ at its very score by the reference, and at the float32 numbers on both sides of it."""
    delta = noise_difference(demo_checkpoint, prompt, [], 3)
    left, right = torch.combinations(torch.arange(3)).T
    score = float(similarity(delta[left], delta[right]).max())
    for tau, above in ((score, False), (float(np.nextafter(np.float32(score), np.float32(0))), True)):
        found = Detector(demo_checkpoint, tau, SETTINGS).detect_all(["a bus", prompt])[1]
        assert found.score == score
        assert found.memorized == above


def alone(checkpoint: Checkpoint, probe: NoiseProbe, prompt: str) -> torch.Tensor:
    feed = {name: value.float().cpu().numpy().repeat(3, axis=0) for name, value in checkpoint.encode([prompt]).items()}
    return probe.noise(open_runner(checkpoint.unet_component()), feed, probe.latents_SCHW)


def test_each_text_is_run_once_and_nothing_at_all_once_more(toy: Checkpoint) -> None:
    detector, told = Detector(toy, 0.3, SETTINGS), list[int]()
    found = detector.detect_all(PROMPTS, report=told.append)
    assert detector.rows == 3 * (4 + 1)  # four texts, and the empty prompt that ε is compared with
    assert found[0] == found[-1]
    assert sum(told) == len(PROMPTS)
    assert 0 < detector.unet_seconds < detector.seconds


def test_a_run_goes_on_where_it_stopped(toy: Checkpoint, tmp_path: Path) -> None:
    path, told = tmp_path / "out" / "detection.jsonl", list[int]()
    whole = Detector(toy, 0.3, SETTINGS).detect_all(PROMPTS, path)
    assert read_detections(path) == list(dict.fromkeys(whole))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:-5])
    detector = Detector(toy, 0.3, SETTINGS)
    again = detector.detect_all(PROMPTS, path, told.append)
    assert detector.rows == 3 * (2 + 1)
    assert told[0] == 3  # one of the two is twice in the list
    for one, other in zip(again, whole, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-6)
    assert [each.prompt for each in read_detections(path)] == PROMPTS[:-1]


@pytest.mark.parametrize("tau", [nan, inf, 0.0, 1.0, -0.1])
def test_a_threshold_that_is_no_score_is_refused(toy: Checkpoint, tau: float) -> None:
    with pytest.raises(InputError, match=r"detection: τ = .*, expected a finite number above 0 and below 1"):
        Detector(toy, tau, SETTINGS)


@pytest.mark.parametrize("what", ["memorization scores of the prompt 'a pig'", "predicted noise of the prompt ''"])
def test_noise_that_is_no_number_is_not_taken_for_not_memorized(toy: Checkpoint, what: str) -> None:
    unet, detector = copy.deepcopy(toy.unet), Detector(toy, 0.3, SETTINGS)
    unet.conv_out.bias.fill_(nan)
    broken = Detector(replace(toy, unet=unet), 0.3, SETTINGS)
    if "scores" in what:  # the empty prompt, which is first, is a number
        list(detector.stream(["a pig"]))
        broken._nothing = detector._nothing
    with pytest.raises(InputError, match=f"{what}: .* are not finite numbers: the checkpoint's weights are not"):
        list(broken.stream(["a pig"]))


def test_results_of_other_inputs_are_refused(toy: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "detection.jsonl"
    Detector(toy, 0.3, SETTINGS).detect_all(PROMPTS[:1], path)
    with pytest.raises(InputError, match="another checkpoint, threshold or settings: give another folder"):
        Detector(toy, 0.4, SETTINGS).detect_all(PROMPTS[:1], path)
    Detector(toy, 0.3, SETTINGS.model_copy(update={"mode": "fast", "rows": 1})).detect_all(PROMPTS[:1], path)


def test_a_stream_yields_before_the_list_is_at_its_end(toy: Checkpoint) -> None:
    detector = Detector(toy, 0.3, SETTINGS.model_copy(update={"rows": 3}))
    first = next(detector.stream(PROMPTS))
    assert isinstance(first, Detection)
    assert detector.rows == 3 * 2
