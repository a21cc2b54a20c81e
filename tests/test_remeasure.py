"""A bundle whose neurons were changed, measured again: by its own prompts and weights, and told as it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_edge import console
from nemo_edge.bundle import open_bundle, open_verified
from nemo_edge.errors import InputError
from nemo_edge.files import sha256_file
from nemo_edge.mitigation import Measurement
from nemo_edge.neurons import NeuronSet
from nemo_edge.rebake import rebake
from nemo_edge.remeasure import open_sources
from nemo_edge.review import report_again

OTHERS = [[1, 6], [0, 2, 3]]


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


@pytest.fixture
def saved(tiny_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A set of the bundle's layers in a file."""

    def save(lists: list[list[int]]) -> Path:
        NeuronSet.from_lists(NeuronSet.load(tiny_bundle / "neurons.json").layers, lists).save(tmp_path / "new.json")
        return tmp_path / "new.json"

    return save


def hashes(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_file(p) for p in folder.rglob("*") if p.is_file()}


def test_prompts_that_have_changed_are_not_those_of_the_bundle(bundle: Path) -> None:
    manifest = open_bundle(bundle)
    name = next(iter(manifest.prompts))
    with pytest.raises(InputError, match="has changed since: build the bundle again"):
        open_sources(manifest.model_copy(update={"prompts": {**manifest.prompts, name: "0" * 64}}))


def test_random_weights_have_nothing_to_measure(bundle: Path) -> None:
    with pytest.raises(InputError, match="nothing to measure: leave --measure out"):
        open_sources(open_bundle(bundle).model_copy(update={"random_weights": "sd15"}))


def test_measured_again_the_bundle_says_what_its_new_neurons_do(
    bundle: Path, saved: Callable[..., Path], toy_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(bundle)
    with pytest.raises(InputError, match="is not the checkpoint that this bundle was made from"):
        rebake(bundle, saved(OTHERS), measure=True, checkpoint=str(toy_folder))
    assert hashes(bundle) == before
    unmeasured = rebake(bundle, saved(OTHERS))
    console.show_rebaked(unmeasured)
    assert max(map(len, capsys.readouterr().out.splitlines()[:6])) <= 80
    found = rebake(bundle, bundle / "neurons.json", measure=True)
    assert (found.changed, found.measured) == (False, True)
    manifest, measurement = open_verified(bundle), Measurement.read(bundle)
    assert (manifest.measured, manifest.gates, measurement.neurons) == (True, found.gates, 5)
    assert {name for name in manifest.files if name.startswith("report/pictures")}
    assert "but others were chosen: 5 neurons are silenced" in (bundle / "report" / "index.html").read_text()
    assert max(v.trajectory.largest_error for v in measurement.variants) < 1e-4
    assert report_again(bundle).is_file()
