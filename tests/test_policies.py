"""Policies by name: what each silences, how sure it is, and what becomes of a name that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_edge.errors import InputError
from nemo_edge.neurons import NeuronSet, ValueLayer
from nemo_edge.policies import ALWAYS, OFF, Policies, apply, baked_policies, masked_policies

LAYERS = (ValueLayer(name="a", width=4), ValueLayer(name="b", width=3))
FOUND = NeuronSet.from_lists(LAYERS, [[1, 3], [2]])


def test_always_silences_what_was_found_and_off_nothing() -> None:
    policies = masked_policies(FOUND)
    mask, score = apply(policies.choose(ALWAYS), 2)
    assert mask is not None
    assert mask.tolist() == [[1, 0, 1, 0, 1, 1, 0]] * 2
    assert score.tolist() == [1, 1]
    mask, score = apply(policies.choose(OFF), 2)
    assert mask is not None
    assert mask.tolist() == [[1] * 7] * 2
    assert score.tolist() == [0, 0]


def test_a_baked_unet_has_one_policy_and_is_fed_no_mask() -> None:
    policies = baked_policies()
    assert list(policies.neurons) == [ALWAYS]
    mask, score = apply(policies.choose(ALWAYS), 2)
    assert mask is None
    assert score.tolist() == [1, 1]
    with pytest.raises(InputError, match="unknown policy 'off': this pipeline has always"):
        policies.choose(OFF)


def test_an_unknown_name_is_refused_with_the_names_there_are_and_cut_short() -> None:
    with pytest.raises(InputError, match="unknown policy 'alwys': this pipeline has always, off"):
        masked_policies(FOUND).choose("alwys")
    with pytest.raises(InputError) as refused:
        masked_policies(FOUND).choose("x" * 10_000)
    assert len(str(refused.value)) < 200


def test_policies_are_read_as_they_were_written_and_the_version_follows_the_neurons(tmp_path: Path) -> None:
    policies = masked_policies(FOUND)
    policies.save(tmp_path / "policies.json")
    assert Policies.load(tmp_path / "policies.json") == policies
    assert policies.version == masked_policies(FOUND).version
    assert policies.version != masked_policies(NeuronSet.from_lists(LAYERS, [[1, 3], []])).version
    assert masked_policies(NeuronSet.empty(LAYERS)).version != masked_policies(NeuronSet.empty(LAYERS[:1])).version
    (tmp_path / "policies.json").write_text('{"schema_version": 2}')
    with pytest.raises(InputError, match="does not hold policies"):
        Policies.load(tmp_path / "policies.json")


def test_policies_whose_neurons_were_changed_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "policies.json"
    masked_policies(FOUND).save(path)
    path.write_text(path.read_text().replace("3", "2"))
    with pytest.raises(InputError, match="does not hold policies: ship the bundle again"):
        Policies.load(path)


def test_policies_fit_those_of_the_same_layers() -> None:
    policies = masked_policies(FOUND)
    assert policies.fits(masked_policies(NeuronSet.empty(LAYERS)))
    assert not policies.fits(masked_policies(NeuronSet.empty(LAYERS[:1])))
    assert not policies.fits(baked_policies())
