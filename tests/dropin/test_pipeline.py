"""A pipeline of engines under a policy: each picture's prompt decides what is silenced, as on a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image
from served import with_cluster

from dropin import test_load
from dropin.test_load import Model, latents, noise
from nemo_edge.dropin.load import load_pipeline, load_unet
from nemo_edge.model.checkpoint import open_checkpoint
from nemo_edge.system.errors import InputError

sdxl, sd = test_load.sdxl, test_load.sd
MEMORIZED, OTHER = "a red pig", "a dog"


class Clustered(NamedTuple):
    """A bundle that knows a cluster of one memorized prompt, "cluster:pig", and its masked engines as a pipeline."""

    bundle: Path
    pipeline: Any


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def clustered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clustered]:
    folder, model = tmp_path_factory.mktemp("clustered"), request.getfixturevalue(request.param)
    assert isinstance(model, Model)
    states = open_checkpoint(str(model.folder)).encode([MEMORIZED, OTHER, "a cat"])["encoder_hidden_states"].numpy()
    bundle = with_cluster(model.bundle, folder, "pig", states)
    with load_pipeline(bundle, "masked") as pipeline:
        pipeline.set_progress_bar_config(disable=True)
        yield Clustered(bundle, pipeline)


@pytest.fixture
def pipeline(clustered: Clustered) -> Iterator[Any]:
    """The pipeline, which gets its own mask and no policy back."""
    yield clustered.pipeline
    clustered.pipeline.policy = clustered.pipeline.unet.mask = None


def under(pipeline: Any, policy: str | None, **options: Any) -> torch.Tensor:
    pipeline.policy = policy
    return latents(pipeline, **{"prompt": [MEMORIZED, OTHER], **options})


@pytest.mark.parametrize("guidance", [7.0, 1.0])
def test_triggered_leaves_the_pictures_of_other_prompts_as_they_are(pipeline: Any, guidance: float) -> None:
    """In one batch, with guidance, whose rows are two a picture, and without: bit for bit."""
    found, free, cluster = (under(pipeline, name, guidance_scale=guidance) for name in ("triggered", "off", "cluster:pig"))
    assert torch.equal(found[1], free[1])
    assert torch.equal(found[0], cluster[0])
    assert not torch.equal(found[0], free[0])


def test_each_of_several_pictures_of_a_prompt_is_of_its_prompt(pipeline: Any) -> None:
    several = {"num_images_per_prompt": 2, "latents": noise(0, 1, 2, 3)}
    found, free, cluster = (under(pipeline, name, **several) for name in ("triggered", "off", "cluster:pig"))
    assert torch.equal(found[2:], free[2:])
    assert torch.equal(found[:2], cluster[:2])
    assert not torch.equal(found[0], free[0])


def test_a_negative_prompt_triggers_nothing(pipeline: Any) -> None:
    one = {"prompt": OTHER, "negative_prompt": MEMORIZED, "latents": noise(0)}
    assert torch.equal(under(pipeline, "triggered", **one), under(pipeline, "off", **one))


def test_the_mask_is_afterwards_what_it_was(pipeline: Any) -> None:
    own = under(pipeline, None)
    assert torch.equal(under(pipeline, "always"), own)
    pipeline.unet.mask = "off"
    assert torch.equal(under(pipeline, "always"), own)
    assert (pipeline.unet.mask == 1).all()
    with pytest.raises(ZeroDivisionError):
        under(pipeline, "always", callback_on_step_end=lambda *_: 1 / 0)
    assert (pipeline.unet.mask == 1).all()
    pipeline.encode_prompt(MEMORIZED, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    assert (pipeline.unet.mask == 1).all()
    assert torch.equal(under(pipeline, None), under(pipeline, "off"))


def test_a_pipeline_made_of_it_keeps_to_the_mask(pipeline: Any) -> None:
    own = under(pipeline, None)
    pipeline.policy = "off"
    other = AutoPipelineForText2Image.from_pipe(pipeline)
    other.set_progress_bar_config(disable=True)
    assert torch.equal(latents(other, prompt=[MEMORIZED, OTHER]), own)


def test_a_policy_given_at_the_start_takes_the_masked_variant(clustered: Clustered, pipeline: Any) -> None:
    with load_pipeline(clustered.bundle, policy="triggered") as own:
        own.set_progress_bar_config(disable=True)
        assert own.policy == "triggered"
        assert torch.equal(latents(own, prompt=[MEMORIZED, OTHER]), under(pipeline, "triggered"))


def test_states_that_the_trigger_does_not_know_are_refused(pipeline: Any) -> None:
    with pytest.raises(InputError, match=r"clip_skip gives states that policy triggered does not know|leave clip_skip out"):
        under(pipeline, "triggered", clip_skip=1)


def test_what_is_no_policy_of_the_bundle_is_refused_before_an_engine_is_opened(
    clustered: Clustered, pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="unknown policy 'sometimes': this pipeline has always, off, triggered, and cluster:NAME"):
        pipeline.policy = "sometimes"
    monkeypatch.setattr("nemo_edge.dropin.load.open_engines", None)
    for options, why in (
        ({"policy": "sometimes"}, "unknown policy 'sometimes'"),
        ({"policy": "off", "mask": "off"}, "mask and policy each say what is silenced: give one of them"),
        ({"policy": "off", "variant": "baked"}, r"has no variant 'baked'|a baked engine takes no mask"),
    ):
        with pytest.raises(InputError, match=why):
            load_pipeline(clustered.bundle, **options)


def test_a_mask_a_picture_is_one_of_the_call_s_pictures(clustered: Clustered, pipeline: Any) -> None:
    free, own = (under(pipeline, name) for name in ("off", "always"))
    pipeline.policy = None
    with load_unet(clustered.bundle, "masked", mask="off") as unet:
        ones = unet.mask
        assert ones is not None
    pipeline.unet.mask = np.stack([pipeline.unet.mask, ones])
    assert torch.equal(latents(pipeline, prompt=[MEMORIZED, OTHER]), torch.stack([own[0], free[1]]))
    with pytest.raises(InputError, match="the mask is of 2 pictures, and the UNet was called with 3 rows"):
        latents(pipeline, prompt=["a", "b", "c"], latents=noise(0, 1, 2), guidance_scale=1.0)
