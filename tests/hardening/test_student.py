"""Which weights change, what stays of the mitigated model, and what a step does."""

from __future__ import annotations

import copy

import pytest
import torch

from nemo_edge.hardening import _student as student_module
from nemo_edge.hardening._lessons import Lesson
from nemo_edge.hardening._student import Student, check_memory, copied, free_weights
from nemo_edge.measure.attacks.objective import Objective
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint
from nemo_edge.recipe.hardening import HardeningSettings, Weights
from nemo_edge.system.errors import InputError


@pytest.fixture
def checkpoint(toy_folder: object) -> Checkpoint:
    return open_checkpoint(str(toy_folder))


def student_of(checkpoint: Checkpoint, at_once: int = 4, rate: float = 1e-2, weights: Weights = "cross-attention") -> Student:
    objective, settings = Objective.of(checkpoint), HardeningSettings(weights=weights, rate=rate)
    free = free_weights(objective.unet, weights)
    return Student(objective, free, settings, at_once, copied(free))


def lesson_of(checkpoint: Checkpoint, rows: int = 4) -> Lesson:
    generator = torch.Generator().manual_seed(0)
    noised = Objective.of(checkpoint).noised(torch.randn(checkpoint.config.latent_shape, generator=generator), rows, generator)
    told, teacher = checkpoint.encode(["a red pig"] * rows), checkpoint.encode(["a blue whale"] * rows)
    return Lesson(noised, dict(told), dict(teacher))


def test_cross_attention_is_a_part_of_all(toy: Checkpoint) -> None:
    every, part = (free_weights(Objective.of(toy).unet, kind) for kind in ("all", "cross-attention"))
    assert len(every) == len(list(toy.unet.parameters()))
    assert 0 < len(part) < len(every)
    assert all(".attn2." in name for name in part)


def test_a_step_leads_to_the_mitigated_model_s_answer_to_the_prompt(checkpoint: Checkpoint) -> None:
    student, lesson = student_of(checkpoint), lesson_of(checkpoint)
    losses = [student.step([(lesson, 1.0)])[0] for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]


def test_the_mitigated_model_stays_what_it_was(checkpoint: Checkpoint) -> None:
    before = copy.deepcopy(Objective.of(checkpoint).unet)
    student, lesson = student_of(checkpoint), lesson_of(checkpoint)
    with torch.no_grad():
        conditions = [lesson.teacher[name] for name in student.objective.names]
        (expected,) = before(lesson.noised.x_BCHW, lesson.noised.time_B.float(), *conditions)
    for _ in range(3):
        student.step([(lesson, 1.0)])
    with torch.no_grad():
        assert torch.equal(student._answer(lesson, lesson.teacher, student.teacher), expected)
        assert not torch.equal(student._answer(lesson, lesson.teacher), expected)


def test_what_is_not_free_does_not_change_and_an_attack_finds_no_gradients_at_the_weights(checkpoint: Checkpoint) -> None:
    before = {name: value.clone() for name, value in checkpoint.unet.state_dict().items()}
    student = student_of(checkpoint)
    student.step([(lesson_of(checkpoint), 1.0)])
    changed = {name for name, value in checkpoint.unet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".attn2." in name for name in changed)
    assert not any(value.requires_grad or value.grad is not None for value in student.free.values())


def test_a_change_of_low_rank_is_added_to_the_weights_and_leaves_what_is_silenced(checkpoint: Checkpoint) -> None:
    value = checkpoint.unet.down_blocks[0].attentions[0].transformer_blocks[0].attn2.to_v.weight
    with torch.no_grad():
        value[1] = 0
    before = {name: value.clone() for name, value in checkpoint.unet.state_dict().items()}
    student, lesson = student_of(checkpoint, weights="low-rank"), lesson_of(checkpoint)
    losses = [student.step([(lesson, 1.0)])[0] for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    for name, after in checkpoint.unet.state_dict().items():
        change = (after - before[name]).flatten(1) if after.dim() > 1 else after - before[name]
        assert (torch.linalg.matrix_rank(change, tol=1e-4) <= 8) if after.dim() > 1 else not change.any(), name
    assert not value[1].any()
    assert value[0].ne(before["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight"][0]).any()
    with torch.no_grad():  # an attack sees what was learned
        conditions = [lesson.told[name] for name in student.objective.names]
        (own,) = student.objective.unet(lesson.noised.x_BCHW, lesson.noised.time_B.float(), *conditions)
        assert torch.equal(own, student._answer(lesson, lesson.told, student._changed()))


def test_rows_that_do_not_fit_together_are_one_step_all_the_same(checkpoint: Checkpoint) -> None:
    """By the loss that the step tells, and the gradient that it leaves before the weights move: a rate of nearly nothing."""
    lesson = lesson_of(checkpoint)
    together, apart = (student_of(checkpoint, at_once, rate=1e-12).step([(lesson, 1.0)])[0] for at_once in (4, 3))
    assert together == pytest.approx(apart, rel=1e-5)


def test_too_little_memory_is_said_before_with_the_remedy(toy: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(student_module, "memory_available", lambda: 1000)
    with pytest.raises(InputError, match="--weights cross-attention"):
        check_memory(Objective.of(toy).unet, "all", toy.device)
    with pytest.raises(InputError, match="are free: use a machine with more memory"):
        check_memory(Objective.of(toy).unet, "cross-attention", toy.device)
