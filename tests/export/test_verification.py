"""Whether a graph does what eager does: what it is asked, what is kept of the answers, and which tensor is named when it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nemo_edge.backends.torch import open_runner
from nemo_edge.export._component import Disagreement, export_component
from nemo_edge.export._verification import (
    Case,
    Reference,
    answered,
    first_bad,
    largest_values,
    prompt_feeds,
    random_feeds,
    read_cases,
    trajectory,
    verify,
    write_cases,
)
from nemo_edge.graph.agreement import TOLERANCES, Agreement
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.component import Component, Port
from nemo_edge.recipe.settings import ExportSettings

FACTOR = 2
"""Pixels of a toy latent."""


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Chain(nn.Module):
    """Multiplies by each factor in turn."""

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.steps = nn.ModuleList(map(Scale, factors))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        for step in self.steps:
            x = step(x)
        return (x,)


def chain(*factors: float) -> Component:
    return Component("chain", Chain(*factors).eval().requires_grad_(False), (Port("x", ("batch", 8)),), ("y",), {})


def exported(component: Component, folder: Path, dtype: str) -> Path:
    """The file of a component in `dtype`, held against nothing."""
    settings = ExportSettings.model_validate({"dtype": dtype})
    typed = replace(component, module=Chain(*(float(s.factor) for s in component.module.steps)).to({"fp16": torch.half}[dtype]))
    return folder / export_component(typed, folder / "chain", settings, {}, reference=Reference([], lambda: component)).model


def texts(checkpoint: Checkpoint) -> list[Case]:
    """What each text encoder answers to the prompts of the trajectory."""
    feeds = prompt_feeds(checkpoint.config)
    return [answered(checkpoint.text_component(i), {"a prompt": feed})[0] for i, feed in enumerate(feeds)]


def sizes(feeds: dict[str, dict[str, np.ndarray]]) -> list[tuple[int, ...]]:
    return [feed["sample"].shape for feed in feeds.values()]


def test_random_feeds_are_small_and_not_square_where_sizes_are_free(toy: Checkpoint) -> None:
    component = replace(toy.unet_component(), sizes={"height": 64, "width": 64})
    assert sizes(random_feeds(component, ExportSettings(), FACTOR)) == [(1, 4, 16, 24), (3, 4, 16, 24)]
    many = replace(component, multiples={"height": 64, "width": 64}, sizes={"height": 256, "width": 256})
    assert sizes(random_feeds(many, ExportSettings(), FACTOR)) == [(1, 4, 128, 192), (3, 4, 128, 192)]
    odd = replace(component, multiples={"height": 5, "width": 5}, sizes={"height": 50, "width": 50})
    (first, _) = sizes(random_feeds(odd, ExportSettings(), FACTOR))
    assert (first[2] % 5, first[3] % 5, first[2] < first[3]) == (0, 0, True)


def test_a_model_that_is_smaller_is_asked_at_its_own_size(toy: Checkpoint) -> None:
    component = replace(toy.unet_component(), sizes={"height": 8, "width": 8}, multiples={})
    assert sizes(random_feeds(component, ExportSettings(), FACTOR)) == [(1, 4, 8, 8), (3, 4, 8, 8)]


@pytest.mark.parametrize(
    ("pinned", "expected"),
    [
        ({"height": 128, "width": 96}, [(1, 4, 64, 48), (3, 4, 64, 48)]),
        ({"height": 128}, [(1, 4, 64, 24), (3, 4, 64, 24)]),
        ({"batch": 5}, [(5, 4, 16, 24)]),
        ({"batch": 1, "width": 32}, [(1, 4, 16, 16)]),
    ],
)
def test_what_is_pinned_is_asked_as_it_is(toy: Checkpoint, pinned: dict[str, int], expected: list[tuple[int, ...]]) -> None:
    component = replace(toy.unet_component(), sizes={"height": 64, "width": 64})
    assert sizes(random_feeds(component, ExportSettings.model_validate(pinned), FACTOR)) == expected


def test_a_text_encoder_has_no_sizes_to_ask_for(toy: Checkpoint) -> None:
    feeds = random_feeds(toy.text_component(0), ExportSettings(height=64, width=64), FACTOR)
    assert [feed["input_ids"].shape for feed in feeds.values()] == [(1, 16), (3, 16)]


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_the_trajectory_is_one_case_of_all_steps(toy: Checkpoint, toy_sdxl: Checkpoint, family: str) -> None:
    checkpoint = toy_sdxl if family == "sdxl" else toy
    (case,), latents = trajectory(checkpoint.config, texts(checkpoint), checkpoint.unet_component(), ExportSettings(dtype="fp16"))
    assert {array.shape[0] for array in (*case.feed.values(), *case.expected.values())} == {2 * 3}
    times = case.feed["timestep"]
    assert (len(set(times)), list(times)) == (3, sorted(times, reverse=True))
    again = open_runner(checkpoint.unet_component())(case.feed)["out_sample"]
    np.testing.assert_allclose(case.expected["out_sample"], again, atol=1e-5)
    assert latents["latent_sample"].shape == (1, 4, 16, 16)
    assert not np.array_equal(case.feed["encoder_hidden_states"][0], case.feed["encoder_hidden_states"][1])


def test_a_pinned_batch_of_two_takes_the_steps_one_by_one(toy: Checkpoint) -> None:
    along, latents = trajectory(toy.config, texts(toy), toy.unet_component(), ExportSettings(dtype="fp16", batch=2))
    assert [case.feed["sample"].shape for case in along] == [(2, 4, 16, 16)] * 3
    assert len({case.name for case in along}) == 3
    assert latents == {}
    assert trajectory(toy.config, texts(toy), toy.unet_component(), ExportSettings(dtype="fp16", batch=3)) == ([], {})


def test_the_trajectory_keeps_pinned_sizes(toy: Checkpoint) -> None:
    (case,), latents = trajectory(toy.config, texts(toy), toy.unet_component(), ExportSettings(dtype="fp16", height=48, width=64))
    assert (case.feed["sample"].shape[2:], latents["latent_sample"].shape[2:]) == ((24, 32), (24, 32))


def test_cases_are_read_as_they_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cases = [
        Case(f"batch {i}", {"ids": rng.integers(0, 9, (i, 3)), "x": rng.random((3, i), np.float32).T}, {"y.1": rng.random((i, 2))})
        for i in range(1, 12)
    ]
    write_cases(tmp_path / "c.safetensors", [*cases, Case("feed alone", {"x": np.ones(2, np.float16)}, {})])
    found = read_cases(tmp_path / "c.safetensors")
    assert [case.name for case in found] == [*(case.name for case in cases), "feed alone"]
    for ours, theirs in zip(cases, found, strict=False):
        for one, other in ((ours.feed, theirs.feed), (ours.expected, theirs.expected)):
            assert one.keys() == other.keys()
            assert all(np.array_equal(one[n], other[n]) and one[n].dtype == other[n].dtype for n in one)
    write_cases(tmp_path / "none.safetensors", [])
    assert read_cases(tmp_path / "none.safetensors") == []


def test_a_graph_in_fp16_agrees_and_is_not_exact(tmp_path: Path) -> None:
    component = chain(0.3, 3.7)
    cases = answered(component, random_feeds(component, ExportSettings(), FACTOR))
    found = verify(exported(component, tmp_path, "fp16"), cases, "fp16")
    assert [a.case for a in found] == ["batch 1", "batch 3"]
    assert all(a.passed and a.finite and a.tolerance == TOLERANCES["fp16"] for a in found)
    assert all(0 < a.largest_error < 0.01 for a in found)
    wrong = replace(cases[0], expected={"y": cases[0].expected["y"] + 1})
    assert [a.passed for a in verify(tmp_path / "chain/model.onnx", [wrong], "fp16")] == [False]
    short = replace(cases[0], expected={"y": cases[0].expected["y"][:, :4]})
    assert [(a.passed, a.largest_error) for a in verify(tmp_path / "chain/model.onnx", [short], "fp16")] == [(False, np.inf)]


@pytest.mark.parametrize("error", [np.nan, np.inf])
def test_what_is_no_number_neither_passes_nor_is_finite(error: float) -> None:
    found = Agreement(case="c", output="y", largest_error=error, largest_value=1.0, tolerance=0.1)
    assert (found.passed, found.finite) == (False, False)
    assert Agreement.model_validate_json(found.model_dump_json()).passed is False


def test_the_tensor_that_overflows_in_fp16_is_named(tmp_path: Path) -> None:
    component = chain(1e3, 1e3, 2.0)
    case = answered(component, random_feeds(component, ExportSettings(), FACTOR))[0]
    path = exported(component, tmp_path, "fp16")
    (found,) = verify(path, [case], "fp16")
    assert (found.passed, found.finite) == (False, False)
    said = first_bad(component, path, case, "fp16")
    assert said.startswith("the first tensor that is not finite is ")
    assert said.endswith("(Mul of steps.1)")


def test_eager_tells_what_fp16_would_not_hold() -> None:
    """ONNX Runtime's CPU provider computes such a graph in float32, and the cases agree."""
    component = chain(1e3, 1e3, 1e-6)
    feeds = {"first": {"x": np.full((1, 8), -2, np.float32)}, "second": {"x": np.ones((1, 8), np.float32)}}
    with largest_values(component.module) as found:
        answered(component, feeds)
    assert list(found) == ["steps.0", "steps.1", "steps.2"]
    assert [round(value) for value in found.values()] == [2000, 2_000_000, 2]
    answered(component, {"third": {"x": np.full((1, 8), 99, np.float32)}})
    assert round(found["steps.0"]) == 2000


def test_a_value_that_is_no_number_is_the_largest_of_all() -> None:
    component = chain(1.0, 1.0)
    with largest_values(component.module) as found:
        answered(component, {"first": {"x": np.full((1, 8), np.nan, np.float32)}})
    assert not any(value <= 65504 for value in found.values())


def test_the_tensor_that_is_off_is_named_with_its_error(tmp_path: Path) -> None:
    right, wrong = chain(2.0, 3.0, 0.5), chain(2.0, 4.5, 0.5)
    case = answered(right, random_feeds(right, ExportSettings(), FACTOR))[0]
    said = first_bad(right, exported(wrong, tmp_path, "fp16"), case, "fp16")
    assert said.startswith("the first tensor that is off by 0.5 is ")
    assert said.endswith("(Mul of steps.1)")
    assert first_bad(wrong, tmp_path / "chain/model.onnx", case, "fp16") == "no tensor inside of it is off by that much"


def test_a_disagreement_says_which_and_how_to_go_on(tmp_path: Path) -> None:
    right, wrong = chain(2.0, 3.0), chain(2.0, 4.5)
    case = answered(right, random_feeds(right, ExportSettings(), FACTOR))[0]
    wrong.module.half()
    with pytest.raises(
        Disagreement, match=r"^chain: output y at batch 1 is off by .*Mul of steps\.1\): try export.fp32 = \['chain'\] or"
    ) as off:
        export_component(wrong, tmp_path / "chain", ExportSettings(dtype="fp16"), {}, reference=Reference([case], lambda: right))
    assert off.value.finite
    assert list(tmp_path.iterdir()) == []
