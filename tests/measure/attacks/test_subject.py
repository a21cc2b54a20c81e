"""A bundle's engines draw what its checkpoint draws with its neurons silenced; what is of another kind or model is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.measure.attacks.embedding import draw_found, from_noise
from nemo_edge.measure.attacks.subject import Place, check_place, open_subject
from nemo_edge.model.checkpoint import value_layers
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.model.surgery import silenced
from nemo_edge.recipe.settings import CheckpointSettings, SamplingSettings
from nemo_edge.system.errors import BundleError, InputError


def place(path: Path, **others: object) -> Place:
    return Place(CheckpointSettings(path=str(path)), **others)  # type: ignore[arg-type]


def test_an_embedding_is_replayed_on_the_engine(tiny_bundle: Path) -> None:
    here = place(tiny_bundle)
    with open_subject(here, check_place(here)) as subject:
        told = from_noise(subject.eager.encode(["a red pig"], subject.size), 0)
        engine = draw_found(subject.replay, told, [0, 1], subject.sampling, subject.mask)
        plain = draw_found(subject.eager, told, [0, 1], subject.sampling)
        with silenced(subject.checkpoint.unet, subject.neurons):
            eager = draw_found(subject.eager, told, [0, 1], subject.sampling)
        assert len(subject.neurons) > 0
        assert np.abs(engine.astype(int) - eager).max() <= 1 < np.abs(engine.astype(int) - plain).max()
        assert subject.sampling.steps == 3, "the recipe's"


def test_a_checkpoint_draws_by_itself_with_what_it_is_given(toy_folder: Path, tmp_path: Path) -> None:
    sampling = SamplingSettings(steps=2)
    here = place(toy_folder, sampling=sampling)
    with open_subject(here, check_place(here)) as subject:
        layers = value_layers(subject.checkpoint.unet)
        assert subject.replay is subject.eager
        assert (len(subject.neurons), subject.mask, subject.threshold, subject.sampling) == (0, None, None, sampling)
        plain = subject.content_hash()
    NeuronSet.from_lists(layers, [[0]] * len(layers)).save(tmp_path / "n.json")
    with open_subject(place(toy_folder, neurons=tmp_path / "n.json", sampling=sampling), None) as subject:
        assert len(subject.neurons) == len(layers)
        assert subject.content_hash() != plain


def test_a_bundle_of_random_weights_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    random = open_bundle(bundle).model_copy(update={"random_weights": "sd15"})
    (bundle / "manifest.json").write_text(random.model_dump_json())
    with pytest.raises(BundleError, match=r"carries random weights \(sd15\)"):
        check_place(place(bundle))


def test_a_bundle_that_was_changed_is_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    (bundle / "neurons.json").write_text("{}")
    with pytest.raises(BundleError, match=r"neurons\.json was changed"):
        check_place(place(bundle))


def test_options_of_the_other_kind_are_refused(tiny_bundle: Path, toy_folder: Path) -> None:
    for option, given in (("--neurons", {"neurons": Path("n.json")}), ("--recipe", {"sampling": SamplingSettings()})):
        with pytest.raises(InputError, match=f"{option} is for a checkpoint"):
            check_place(place(tiny_bundle, **given))
    with pytest.raises(InputError, match="--checkpoint"):
        check_place(place(toy_folder, weights="other"))


def test_weights_that_a_bundle_is_not_made_from_are_refused(tiny_bundle: Path, toy_folder: Path) -> None:
    here = place(tiny_bundle, weights=str(toy_folder))
    with pytest.raises(InputError, match=r"is not the checkpoint that .* was made from"), open_subject(here, check_place(here)):
        pass
