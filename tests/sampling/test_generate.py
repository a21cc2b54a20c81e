"""Pictures from a bundle, without its checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nemo_edge.bundle.manifest import MANIFEST, open_bundle
from nemo_edge.bundle.policies import Policies
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.generate import Request, _facts, draw
from nemo_edge.system.errors import InputError
from nemo_edge.system.files import sha256_file
from nemo_edge.system.progress import Progress


def drawn(bundle: Path, folder: Path, **options: object) -> np.ndarray:
    (path,) = draw(bundle, Request("a red pig", **options), folder / "p.png")  # type: ignore[arg-type]
    return np.asarray(Image.open(path)).astype(int)


def test_both_variants_draw_the_same_picture(tiny_bundle: Path, tmp_path: Path) -> None:
    baked, masked = (drawn(tiny_bundle, tmp_path, variant=variant) for variant in ("baked", "masked"))
    assert np.abs(baked - masked).max() <= 1


def test_a_mask_of_the_bundle_s_neurons_is_the_default_and_ones_are_unmitigated(tiny_bundle: Path, tmp_path: Path) -> None:
    neurons = NeuronSet.load(tiny_bundle / "neurons.json")
    np.save(tmp_path / "own.npy", neurons.mask())
    np.save(tmp_path / "ones.npy", np.ones(neurons.total, np.float32))
    default, own = drawn(tiny_bundle, tmp_path, variant="masked"), drawn(tiny_bundle, tmp_path, mask=tmp_path / "own.npy")
    ones, unmitigated = drawn(tiny_bundle, tmp_path, mask=tmp_path / "ones.npy"), drawn(tiny_bundle, tmp_path, unmitigated=True)
    assert np.array_equal(default, own)
    assert np.array_equal(ones, unmitigated)
    assert not np.array_equal(default, unmitigated)


def test_several_pictures_are_numbered_and_each_is_its_seed_s(tiny_bundle: Path, tmp_path: Path) -> None:
    paths = draw(tiny_bundle, Request("a red pig", seed=4, count=2), tmp_path / "p.png")
    assert [path.name for path in paths] == ["p-00.png", "p-01.png"]
    with Image.open(paths[1]) as image:
        texts = image.text  # type: ignore[attr-defined]
    assert (texts["prompt"], texts["seed"], texts["silenced"]) == ("a red pig", "5", "the bundle's neurons, baked")
    for known in (open_bundle(tiny_bundle).identity, sha256_file(tiny_bundle / MANIFEST)):
        assert known in texts["bundle"]
    second = np.asarray(Image.open(paths[1])).astype(int)
    assert np.abs(second - drawn(tiny_bundle, tmp_path, seed=5)).max() <= 1


def test_neurons_of_other_layers_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    found = NeuronSet.load(tiny_bundle / "neurons.json")
    NeuronSet.empty(found.layers[:1]).save(tmp_path / "other.json")
    with pytest.raises(InputError, match="other value layers"):
        drawn(tiny_bundle, tmp_path, mask=tmp_path / "other.json")
    assert not (tmp_path / "p.png").exists()


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def test_a_policy_silences_what_a_server_would(tiny_bundle: Path, tmp_path: Path) -> None:
    own = Policies.load(tiny_bundle / "policies.json").neurons["cluster:a-red-pig"]
    assert own is not None
    own.save(tmp_path / "own.json")
    always, off, triggered = (drawn(tiny_bundle, tmp_path, policy=name) for name in ("always", "off", "triggered"))
    assert np.array_equal(always, drawn(tiny_bundle, tmp_path, variant="masked"))
    assert np.array_equal(off, drawn(tiny_bundle, tmp_path, unmitigated=True))
    assert np.array_equal(triggered, drawn(tiny_bundle, tmp_path, mask=tmp_path / "own.json"))
    assert not np.array_equal(triggered, off)


def test_a_prompt_that_does_not_trigger_is_drawn_by_the_model_as_it_was_and_a_line_says_so(tiny_bundle: Path, tmp_path: Path) -> None:
    notes = Notes()
    pictures = []
    for options in ({"policy": "triggered"}, {"unmitigated": True}):
        (path,) = draw(tiny_bundle, Request("a dog", **options), tmp_path / "p.png", notes)  # type: ignore[arg-type]
        pictures.append(np.asarray(Image.open(path)))
    assert np.array_equal(*pictures)
    assert re.fullmatch(r"policy triggered: score -?0\.\d{3}, neurons silenced: 0", notes.notes[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"policy": "nobody"}, "unknown policy 'nobody': this pipeline has always, off, triggered, and cluster:NAME of the 2 clusters"),
        ({"policy": ""}, "unknown policy ''"),
        ({"policy": "off", "variant": "baked"}, "a baked engine takes no mask"),
        ({"policy": "off", "unmitigated": True}, "--policy and --unmitigated each say what is silenced: give one of them"),
        ({"mask": Path("m.npy"), "policy": "off"}, "--mask and --policy each say"),
    ],
)
def test_a_policy_that_cannot_be_applied_is_refused(tiny_bundle: Path, tmp_path: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        drawn(tiny_bundle, tmp_path, **options)
    assert not (tmp_path / "p.png").exists()


def test_a_mask_whose_name_is_not_utf_8_can_stand_in_a_picture() -> None:
    facts = _facts(Request("a red pig", mask=Path("\udcff.npy")), SamplingSettings(), "masked", "tiny")
    assert facts["silenced"].encode() == b"mask \\udcff.npy"
