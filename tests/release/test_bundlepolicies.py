"""The policies of a bundle: a cluster for what was localized together, named so that a request can name it, and a trigger for each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nemo_edge import demo
from nemo_edge.bundle.manifest import open_bundle
from nemo_edge.bundle.policies import ALWAYS, CLUSTER, OFF, TRIGGERED, Policies, apply
from nemo_edge.localization.groups import Groups, clusters_of
from nemo_edge.localization.localizer import Localizer, read_results
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.neurons import NeuronSet
from nemo_edge.recipe.prompts import Prompt, read_prompts
from nemo_edge.release import bundlepolicies
from nemo_edge.release.bundlepolicies import make_policies
from nemo_edge.release.rebake import rebake

GENERAL = ["a mushroom", "whale carrot on a pink background", "a banana on a black background", "a whale", "doughnut pig", "a red key"]


def states(checkpoint: Checkpoint, *texts: str) -> np.ndarray:
    return checkpoint.encode(texts)["encoder_hidden_states"].float().numpy()


def test_a_masked_bundle_has_its_policies_with_a_cluster_for_each_of_its_prompts(tiny_bundle: Path) -> None:
    assert "policies.json" in open_bundle(tiny_bundle).files
    policies = Policies.load(tiny_bundle / "policies.json")
    found = NeuronSet.load(tiny_bundle / "neurons.json")
    results = {result.prompt: result.refined for result in read_results(tiny_bundle / "localization.jsonl")}
    assert list(policies.neurons) == [ALWAYS, OFF, "cluster:a-red-pig", "cluster:script-alert-1-owl"]
    assert policies.neurons[ALWAYS] == found
    assert policies.neurons["cluster:a-red-pig"] == results["a red pig"]
    assert policies.trigger is not None
    assert [*policies.trigger.prompts] == ["a-red-pig", "script-alert-1-owl"]


def test_a_bundle_rebaked_keeps_of_each_cluster_what_is_still_silenced(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle, tmp_path / "bundle")
    before = Policies.load(bundle / "policies.json")
    found = NeuronSet.load(bundle / "neurons.json")
    own = before.neurons["cluster:a-red-pig"]
    assert own is not None
    assert len(own)
    (found - own).save(tmp_path / "fewer.json")
    rebake(bundle, tmp_path / "fewer.json")
    after = Policies.load(bundle / "policies.json")
    assert after.version != before.version
    assert after.neurons[ALWAYS] == found - own
    mask, _ = apply(after.choose("cluster:a-red-pig"), np.zeros((1, 1, 16), np.float32))
    assert mask is not None
    assert (mask == 1).all()
    assert after.trigger == before.trigger
    assert json.loads((bundle / "manifest.json").read_text())["files"].keys() >= {"policies.json"}


def test_a_caption_and_its_memorized_variants_are_known_and_general_prompts_are_left_alone(demo_localizer: Localizer) -> None:
    checkpoint = demo_localizer.checkpoint
    prompts = [p for p in read_prompts(demo.PROMPTS / "memorized.csv") if p.text in ("kangaroo boomerang regatta", "lizard souvenir")]
    found = demo_localizer.localize_all([p.text for p in prompts])
    groups = Groups(demo_localizer, 4).make_all(clusters_of(prompts, "prompt"), found)
    variants = [(group, variant.text) for group in groups for variant in group.memorized]
    assert variants
    policies = make_policies(checkpoint, prompts, found, groups, GENERAL)
    assert policies.trigger is not None
    assert policies.trigger.rates is not None
    assert policies.trigger.rates.known
    assert policies.trigger.rates.paraphrases == len(variants)
    policy = policies.choose(TRIGGERED)
    for group, text in [*variants, *((group, group.name) for group in groups)]:
        mask, score = apply(policy, states(checkpoint, text))
        assert mask is not None
        assert score[0] > 1 - 1e-5
        assert (mask[0] <= group.neurons.mask()).all()
    mask, score = apply(policy, states(checkpoint, *GENERAL))
    assert mask is not None
    assert (mask == 1).all()
    assert score.max() < policies.trigger.threshold


def test_every_variant_that_was_found_to_be_memorized_is_known(demo_localizer: Localizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: only what is made to calibrate with has a bound."""
    prompts = [Prompt(text="kangaroo boomerang regatta")]
    found = demo_localizer.localize_all([prompts[0].text])
    groups = Groups(demo_localizer, 4).make_all(clusters_of(prompts, "prompt"), found)
    monkeypatch.setattr(bundlepolicies, "MOST", 2)
    (known,) = [group.memorized for group in groups]
    assert len(known) > 2
    trigger = make_policies(demo_localizer.checkpoint, prompts, found, groups, GENERAL).trigger
    assert trigger is not None
    assert [*trigger.known.values()] == [len(known) + 1]


def test_a_paraphrase_nobody_tried_triggers_and_has_the_memory_s_neurons_silenced(demo_localizer: Localizer) -> None:
    checkpoint = demo_localizer.checkpoint
    prompts = [Prompt(text="kangaroo boomerang regatta")]
    found = demo_localizer.localize_all([prompts[0].text])
    policies = make_policies(checkpoint, prompts, found, (), GENERAL)
    assert policies.trigger is not None
    assert policies.trigger.rates is not None
    assert not policies.trigger.rates.known
    mask, _ = apply(policies.choose(TRIGGERED), states(checkpoint, "boomerang kangaroo regatta"))
    assert mask is not None
    assert (mask[0] == found[0].refined.mask()).all()


def test_without_a_memorized_prompt_there_is_no_cluster_and_no_trigger(demo_localizer: Localizer) -> None:
    found = demo_localizer.localize_all(["a mushroom"])
    assert not found[0].memorized
    policies = make_policies(demo_localizer.checkpoint, [Prompt(text="a mushroom")], found, (), GENERAL)
    assert list(policies.neurons) == [ALWAYS, OFF]
    assert policies.trigger is None


def test_names_of_clusters_are_plain_and_differ(demo_localizer: Localizer) -> None:
    texts = ["Kangaroo, boomerang: regatta", "kangaroo boomerang  regatta!"]
    prompts = [Prompt(text=text, cluster=str(i)) for i, text in enumerate(texts)]
    found = [result.model_copy(update={"memorized": True}) for result in demo_localizer.localize_all(texts)]
    policies = make_policies(demo_localizer.checkpoint, prompts, found, (), GENERAL)
    names = [name.removeprefix(CLUSTER) for name in policies.neurons if name.startswith(CLUSTER)]
    assert len({*names}) == len(names)
    assert all(name.replace("-", "").isalnum() and name.isascii() for name in names)
