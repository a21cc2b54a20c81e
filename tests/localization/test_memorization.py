"""The score is the official code's, constant by constant."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from reference import noise_difference

from nemo_edge.backends.torch import open_runner
from nemo_edge.localization.memorization import NoiseProbe, finite, scaled, seed_scores, threshold_of
from nemo_edge.localization.multiscale import pairwise_scores
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.recipe.settings import LocalizationSettings
from nemo_edge.system.errors import InputError

SETTINGS = LocalizationSettings(samples=3)


def conditioning(checkpoint: Checkpoint, prompt: str) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in checkpoint.encode([prompt]).items()}


def test_the_probe_uses_the_second_of_fifty_time_steps(toy: Checkpoint) -> None:
    assert NoiseProbe.of(toy.config, SETTINGS).timestep == 961


@pytest.mark.parametrize("model", ["toy", "demo_checkpoint"])
def test_delta_is_the_reference_s(model: str, request: pytest.FixtureRequest) -> None:
    checkpoint: Checkpoint = request.getfixturevalue(model)
    probe = NoiseProbe.of(checkpoint.config, SETTINGS)
    delta = probe(open_runner(checkpoint.unet_component()), conditioning(checkpoint, "a pig"))
    expected = noise_difference(checkpoint, "a pig", [], 3)
    torch.testing.assert_close(delta, expected, atol=1e-5, rtol=0)
    assert delta.amin(dim=(2, 3)).eq(0).all()
    assert delta.amax(dim=(2, 3)).eq(1).all()


def test_some_seeds_give_the_same_delta_as_all(toy: Checkpoint) -> None:
    probe, unet = NoiseProbe.of(toy.config, SETTINGS), open_runner(toy.unet_component())
    everything = probe(unet, conditioning(toy, "a pig"))
    torch.testing.assert_close(probe(unet, conditioning(toy, "a pig"), (2, 0)), everything[[2, 0]], atol=1e-5, rtol=0)


def test_a_seed_s_score_is_its_highest_over_its_pairs() -> None:
    scores_of_01_02_12 = torch.tensor([0.1, 0.7, 0.3])
    assert seed_scores(scores_of_01_02_12, 3).tolist() == pytest.approx([0.7, 0.3, 0.7])


def test_the_threshold_is_mean_plus_unbiased_deviation() -> None:
    threshold = threshold_of([0.2, 0.4, 0.9])
    assert threshold.value == pytest.approx(0.5 + np.std([0.2, 0.4, 0.9], ddof=1))


def test_a_difference_that_does_not_vary_has_no_score_and_says_so() -> None:
    delta_SCHW = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    assert finite(pairwise_scores(scaled(delta_SCHW)), "scores", "a pig").shape == (1,)
    delta_SCHW[1, 2] = 3.0
    with pytest.raises(InputError, match=r"scores of the prompt 'a\\npig p+…': 1 of 1 are not finite .* is the same everywhere") as caught:
        finite(pairwise_scores(scaled(delta_SCHW)), "scores", f"a\npig {'p' * 99}")
    assert "\n" not in str(caught.value)


def test_a_model_that_predicts_the_sample_is_refused(toy: Checkpoint) -> None:
    from dataclasses import replace

    config = replace(toy.config, scheduler={**toy.config.scheduler, "prediction_type": "sample"})
    with pytest.raises(InputError, match="sample"):
        NoiseProbe.of(config, SETTINGS)
