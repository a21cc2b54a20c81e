"""What the weights are taught, and what the mitigated model says of it."""

from __future__ import annotations

import pytest
import torch

from nemo_edge.hardening._lessons import Memory, draw_memory, draw_others, forget, keep
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.loop import condition, denoise, latent_shape
from nemo_edge.sampling.pipelines import eager_pipeline

SAMPLING = SamplingSettings(steps=2, guidance=3.0)
PROMPTS = ("a red pig", "a blue whale")


def memory_of(checkpoint: Checkpoint) -> Memory:
    latents_CHW = torch.full(latent_shape(checkpoint.config, SAMPLING), 5.0)
    return draw_memory(eager_pipeline(checkpoint), PROMPTS[0], latents_CHW, 3, SAMPLING)


@pytest.mark.parametrize("name", ["toy", "toy_sdxl"])
def test_surrogates_are_the_model_s_own_pictures_of_the_prompt(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    memory, pipeline = memory_of(checkpoint), eager_pipeline(checkpoint)
    *_, last = denoise(pipeline, [PROMPTS[0]] * 3, range(3), SAMPLING)
    torch.testing.assert_close(memory.surrogates_SCHW, torch.from_numpy(last.latents_BCHW))
    told = condition(pipeline, [PROMPTS[0]], SAMPLING)
    for key, value in memory.told.items():
        assert torch.equal(value, torch.from_numpy(told[key][-1:])), key


@pytest.mark.parametrize("name", ["toy", "toy_sdxl"])
def test_others_are_held_with_the_row_that_guidance_leads_away_from(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(name)
    pipeline = eager_pipeline(checkpoint)
    others = draw_others(pipeline, PROMPTS, SAMPLING, torch.zeros(1))
    assert len(others.latents_PCHW) == 3
    told = condition(pipeline, ["anything"], SAMPLING)
    for key, value in others.told.items():
        assert torch.equal(value[-1:], torch.from_numpy(told[key][:1])), key


def test_a_lesson_of_forgetting_is_half_under_the_memory_and_answers_as_to_its_prompt(toy: Checkpoint) -> None:
    objective, memory = Objective.of(toy), memory_of(toy)
    found = {name: value + 1 for name, value in memory.told.items()}
    lesson = forget(objective, memory, found, 6, torch.Generator().manual_seed(0))
    for key in objective.names:
        assert all(torch.equal(row, found[key][0]) for row in lesson.told[key]), key
        assert all(torch.equal(row, memory.told[key][0]) for row in lesson.teacher[key]), key
    under = objective.alpha_bar_T[lesson.noised.time_B].sqrt()
    shown = [(x / a).mean().item() for x, a in zip(lesson.noised.x_BCHW, under, strict=True)]
    signal = [value for value, a in zip(shown[:3], under[:3], strict=True) if a > 0.5]
    assert all(value == pytest.approx(5, abs=1) for value in signal)


def test_what_is_kept_is_answered_as_before_and_drawn_from_all_of_it(toy: Checkpoint) -> None:
    others = draw_others(eager_pipeline(toy), PROMPTS, SAMPLING, torch.zeros(1))
    lesson = keep(Objective.of(toy), others, 40, torch.Generator().manual_seed(0))
    assert lesson.told is lesson.teacher
    seen = {row.numpy().tobytes() for row in lesson.told["encoder_hidden_states"]}
    assert seen == {row.numpy().tobytes() for row in others.told["encoder_hidden_states"]}


def test_a_lesson_is_split_by_its_rows(toy: Checkpoint) -> None:
    lesson = forget(Objective.of(toy), memory_of(toy), memory_of(toy).told, 6, torch.Generator().manual_seed(0))
    parts = lesson.split(4)
    assert [len(part.noised.time_B) for part in parts] == [4, 2]
    for key, value in lesson.told.items():
        assert torch.equal(torch.cat([part.told[key] for part in parts]), value)
