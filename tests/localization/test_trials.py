"""Scores are those of one set after the other by the whole UNet, however many run together and whatever was kept."""

from __future__ import annotations

import numpy as np
import pytest

from nemo_edge.backends.torch import open_runner
from nemo_edge.localization.memorization import NoiseProbe
from nemo_edge.localization.multiscale import ROUNDING, ms_ssim
from nemo_edge.localization.trials import Subject, Trial, Trials
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.settings import LocalizationSettings

SETTINGS = LocalizationSettings(samples=4)
PROMPTS = ("a pig on a red background", "saxophone falafel jubilee")
PLENTY = 10**9


class Stage:
    """Two prompts on trial."""

    def __init__(self, checkpoint: Checkpoint, at_once: int, memory_bytes: int = PLENTY) -> None:
        self.checkpoint = checkpoint
        self.trials = Trials(checkpoint, SETTINGS, at_once, memory_bytes)
        encoded = checkpoint.encode(PROMPTS)
        self.subjects = [self.trials.subject({n: v[i : i + 1] for n, v in encoded.items()}) for i in range(len(PROMPTS))]

    def neurons(self, seed: int, first: int = 0, of: int = 3) -> NeuronSet:
        """Some neurons of each layer from number `first` on; those before it are the same for every seed."""
        layers = self.trials.layers
        rngs = [np.random.default_rng([seed if i >= first else 0, i]) for i in range(len(layers))]
        return NeuronSet.from_lists(layers, [rng.choice(layer.width, of, replace=False) for rng, layer in zip(rngs, layers, strict=True)])

    def plain(self, subject: Subject, neurons: NeuronSet, seed: int | None = None) -> list[float]:
        seeds = subject.seeds if seed is None else (subject.seeds[seed],)
        probe, unet = NoiseProbe.of(self.checkpoint.config, SETTINGS), open_runner(self.checkpoint.unet_component())
        unblocked = probe(unet, subject.conditioning, seeds)
        with silenced(self.checkpoint.unet, neurons):
            return ms_ssim(unblocked, probe(unet, subject.conditioning, seeds)).tolist()


@pytest.mark.parametrize("model", ["toy", "toy_sdxl", "demo_checkpoint"])
@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_scores_are_those_of_the_whole_unet_alone(model: str, at_once: int, request: pytest.FixtureRequest) -> None:
    stage = Stage(request.getfixturevalue(model), at_once)
    stage.trials.keep(stage.subjects[0], (0, 2, 3))
    last = len(stage.trials.layers) - 1
    for first in (0, last, last - 1, 1):  # what was kept serves up to another layer each time
        trials = [Trial(subject, stage.neurons(seed, first)) for seed in (1, 2, 3) for subject in stage.subjects]
        trials += [Trial(stage.subjects[1], stage.neurons(4, first), seed=2)]
        for trial, found in zip(trials, stage.trials.scores(trials), strict=True):
            assert found == pytest.approx(stage.plain(trial.subject, trial.neurons, trial.seed), abs=ROUNDING / 10)


def test_one_set_alone_is_bit_for_bit_the_whole_unet(toy: Checkpoint) -> None:
    stage = Stage(toy, 64)
    subject = stage.subjects[0]
    for seed, first in ((1, 0), (2, 6), (3, 5), (4, 2)):
        neurons = stage.neurons(seed, first)
        assert list(stage.trials.scores([Trial(subject, neurons)])[0]) == stage.plain(subject, neurons)


def test_nothing_is_run_twice(toy: Checkpoint) -> None:
    stage = Stage(toy, 64)
    subject, neurons = stage.subjects[0], stage.neurons(1)
    assert subject.rows == 4
    stage.trials.scores([Trial(subject, neurons, seed=2)])
    assert subject.rows == 5
    stage.trials.scores([Trial(subject, neurons), Trial(subject, neurons)])
    assert subject.rows == 8  # of its four seeds one was known
    stage.trials.scores([Trial(subject, neurons), Trial(subject, neurons, seed=0)])
    assert subject.rows == 8
    assert stage.trials.scores([Trial(subject, NeuronSet.empty(stage.trials.layers))])[0] == pytest.approx((1,) * 4)
    assert subject.rows == 8  # with nothing silenced δ is known


def test_what_is_kept_is_bounded(toy: Checkpoint) -> None:
    plenty, little = Stage(toy, 64), Stage(toy, 64, memory_bytes=10_000)
    assert plenty.subjects[0].kept.size_bytes > 10_000
    for subject in little.subjects:
        assert subject.kept.size_bytes == 0
    for first in (0, 5):
        neurons = plenty.neurons(2, first)
        found = little.trials.scores([Trial(little.subjects[0], neurons)])
        assert found == plenty.trials.scores([Trial(plenty.subjects[0], neurons)])
    assert little.subjects[0].kept.size_bytes == 0


def test_only_recent_differences_are_remembered(toy: Checkpoint) -> None:
    stage = Stage(toy, 64)
    subject = stage.subjects[0]
    for seed in range(20):
        stage.trials.scores([Trial(subject, stage.neurons(seed))])
    assert len(subject.deltas) == 16
    assert len(subject.scores) == 20


def test_trials_leave_the_unet_as_it_was(toy: Checkpoint) -> None:
    component = toy.unet_component()
    before = open_runner(component)(component.example(2))["out_sample"]
    stage = Stage(toy, 8)
    stage.trials.scores([Trial(s, stage.neurons(1)) for s in stage.subjects])
    assert np.array_equal(open_runner(component)(component.example(2))["out_sample"], before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy.unet.modules())
