"""Policies by name: what each silences, how sure it is, and what becomes of a name that is not there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nemo_edge.bundle.policies import ALWAYS, OFF, TRIGGERED, Policies, apply, baked_policies, masked_policies, read_policies
from nemo_edge.bundle.triggers import calibrate_trigger
from nemo_edge.model.neurons import NeuronSet, ValueLayer
from nemo_edge.system.errors import BundleError, InputError

LAYERS = (ValueLayer(name="a", width=4), ValueLayer(name="b", width=3))
FOUND = NeuronSet.from_lists(LAYERS, [[1, 3], [2]])
STATES = np.eye(2, dtype=np.float32)[:, None].repeat(3, axis=1)
"""Text states of two prompts, [B, T, D], in directions of their own."""

CLUSTERS = {"a": NeuronSet.from_lists(LAYERS, [[1], []]), "b": NeuronSet.from_lists(LAYERS, [[], [2]])}
GENERAL = -np.eye(2, dtype=np.float32)


def triggered() -> Policies:
    """Policies of two clusters, one for each of `STATES`; neuron 3 of the first layer belongs to none."""
    prompts = {name: STATES[i : i + 1, 0] for i, name in enumerate(CLUSTERS)}
    return masked_policies(FOUND, clusters=CLUSTERS, trigger=calibrate_trigger(prompts, prompts, GENERAL, known=False))


def factors(policies: Policies, name: str, states: np.ndarray = STATES) -> list[list[float]]:
    mask, _ = apply(policies.choose(name), states)
    assert mask is not None
    return [list(row) for row in mask]


def test_always_silences_what_was_found_and_off_nothing() -> None:
    policies = masked_policies(FOUND)
    mask, score = apply(policies.choose(ALWAYS), STATES)
    assert mask is not None
    assert mask.tolist() == [[1, 0, 1, 0, 1, 1, 0]] * 2
    assert score.tolist() == [1, 1]
    mask, score = apply(policies.choose(OFF), STATES)
    assert mask is not None
    assert mask.tolist() == [[1] * 7] * 2
    assert score.tolist() == [0, 0]


def test_a_baked_unet_has_one_policy_and_is_fed_no_mask() -> None:
    policies = baked_policies()
    assert list(policies.neurons) == [ALWAYS]
    mask, score = apply(policies.choose(ALWAYS), STATES)
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


def test_clusters_are_silenced_alone_or_merged_in_any_order() -> None:
    policies = triggered()
    assert factors(policies, "cluster:a") == [[1, 0, 1, 1, 1, 1, 1]] * 2
    assert factors(policies, "cluster:b, cluster:a") == [[1, 0, 1, 1, 1, 1, 0]] * 2
    assert policies.choose("cluster:b,cluster:a").name == policies.choose("cluster:a,cluster:b,cluster:a").name == "cluster:a,cluster:b"


def test_triggered_silences_the_clusters_that_each_prompt_is_near_and_what_belongs_to_none() -> None:
    both = np.ones((1, 3, 2), np.float32)
    policies = triggered()
    assert factors(policies, TRIGGERED, np.concatenate([STATES, both, -both])) == [
        [1, 0, 1, 0, 1, 1, 1],
        [1, 1, 1, 0, 1, 1, 0],
        [1, 0, 1, 0, 1, 1, 0],
        [1, 1, 1, 0, 1, 1, 1],
    ]
    _, score = apply(policies.choose(TRIGGERED), np.concatenate([STATES, -both]))
    assert policies.trigger is not None
    assert (score >= policies.trigger.threshold).tolist() == [True, True, False]


def test_where_every_neuron_has_its_cluster_other_prompts_keep_all_of_them() -> None:
    policies = triggered().of_neurons(CLUSTERS["a"] | CLUSTERS["b"])
    assert factors(policies, TRIGGERED, -np.ones((1, 3, 2), np.float32)) == [[1] * 7]


def test_other_neurons_leave_a_cluster_what_is_still_among_them_and_give_it_back() -> None:
    policies = triggered()
    after = policies.of_neurons(CLUSTERS["a"])
    assert after.neurons[ALWAYS] == CLUSTERS["a"]
    assert factors(after, "cluster:b") == [[1] * 7] * 2
    assert factors(after, TRIGGERED) == [[1, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert after.version != policies.version
    assert after.of_neurons(FOUND) == policies


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("cluster:c", "unknown policy 'cluster:c': this pipeline has always, off, triggered, and cluster:NAME of the 2 clusters"),
        ("cluster:a,off", "merges what cannot be merged"),
        ("always,triggered", "merges what cannot be merged"),
        ("", "unknown policy ''"),
    ],
)
def test_names_that_mean_nothing_are_refused_without_the_names_of_clusters(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        triggered().choose(name)
    assert "cluster:b" not in str(refused.value)


def test_policies_with_a_trigger_are_read_as_they_were_written_and_have_a_version_of_their_own(tmp_path: Path) -> None:
    policies = triggered()
    policies.save(tmp_path / "policies.json")
    again = Policies.load(tmp_path / "policies.json")
    assert again == policies
    assert factors(again, TRIGGERED) == factors(policies, TRIGGERED)
    assert policies.version != masked_policies(FOUND, clusters=CLUSTERS).version
    assert policies.fits(masked_policies(FOUND))
    lost = json.loads((tmp_path / "policies.json").read_text())
    del lost["neurons"]["cluster:b"]
    (tmp_path / "policies.json").write_text(json.dumps(lost))
    with pytest.raises(InputError, match="does not hold policies"):
        Policies.load(tmp_path / "policies.json")


def test_a_bundle_has_its_own_policies_or_those_of_its_neurons(tmp_path: Path) -> None:
    FOUND.save(tmp_path / "neurons.json")
    assert read_policies(tmp_path, ["neurons.json"], "hash") == masked_policies(FOUND, "hash")
    triggered().save(tmp_path / "policies.json")
    own = read_policies(tmp_path, ["neurons.json", "policies.json"], "hash")
    assert (own.neurons, own.trigger, own.manifest) == (triggered().neurons, triggered().trigger, "hash")
    CLUSTERS["a"].save(tmp_path / "neurons.json")
    with pytest.raises(BundleError, match=r"policies\.json is not of the neurons in neurons\.json"):
        read_policies(tmp_path, ["neurons.json", "policies.json"], "hash")


def test_of_policies_that_are_offered_no_other_is_known_alone_or_merged(tmp_path: Path) -> None:
    every = triggered()
    some = every.offering([ALWAYS, TRIGGERED, "cluster:a"])
    some.save(tmp_path / "p.json")
    assert Policies.load(tmp_path / "p.json") == some
    assert (some.version, some.default, some.offering(None)) == (every.version, ALWAYS, every)
    assert factors(some, "cluster:a") == factors(every, "cluster:a")
    for name in (OFF, "cluster:b", "cluster:a,cluster:b"):
        with pytest.raises(InputError, match=r"is not offered: this pipeline has always, triggered, 1 of its clusters$"):
            some.choose(name)
    assert every.offering(["cluster:b", TRIGGERED]).default == "cluster:b"
    with pytest.raises(InputError, match="unknown policy 'nobody'"):
        every.offering([ALWAYS, "nobody"])
    with pytest.raises(InputError, match="no policy is offered"):
        every.offering([])
