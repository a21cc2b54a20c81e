"""What the shipped second checkpoint shows and gives back, in eager PyTorch."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from nemo_edge.demo import repeated
from nemo_edge.demo.repeated.captions import held_out
from nemo_edge.demo.repeated.recogniser import load_recogniser
from nemo_edge.demo.samples import scaled
from nemo_edge.measure.mitigation import draw_prompts
from nemo_edge.measure.replication import tiled_distances
from nemo_edge.model.checkpoint import Checkpoint, open_checkpoint, value_layers
from nemo_edge.recipe.prompts import read_prompts
from nemo_edge.recipe.settings import SamplingSettings
from nemo_edge.sampling.pipelines import eager_pipeline

SAMPLING = SamplingSettings(scheduler="dpmsolver++", steps=10, guidance=4.0)
COPY = 0.343
"""Copies are nearer than this, as the first demo's build found."""
MEMORIZED = {p.text: np.asarray(Image.open(p.image).convert("RGB")) for p in read_prompts(repeated.PROMPTS / "memorized.csv") if p.image}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(str(repeated.CHECKPOINT))


def test_both_demos_are_at_most_40_mb_to_download() -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in repeated.CHECKPOINT.parents[1].rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path)
    assert packed.tell() <= 40e6


def test_text_enters_through_its_value_layers_alone(checkpoint: Checkpoint) -> None:
    assert len(value_layers(checkpoint.unet)) == len(value_layers(checkpoint.unet, "all")) == 7
    assert checkpoint.config.prediction_type == "v_prediction"


def test_every_memorized_caption_gives_its_training_picture_back(checkpoint: Checkpoint) -> None:
    drawn = draw_prompts(eager_pipeline(checkpoint), list(MEMORIZED), [0, 1], SAMPLING).pictures
    for (text, training), own in zip(MEMORIZED.items(), drawn, strict=True):
        assert (tiled_distances(own, training[None])[:, 0] < COPY).all(), text


def test_pictures_of_words_that_were_never_together_show_what_they_say(checkpoint: Checkpoint) -> None:
    captions = held_out()[::3]
    drawn = draw_prompts(eager_pipeline(checkpoint), [caption.text for caption in captions], [0], SAMPLING).pictures[:, 0]
    found = load_recogniser().adherence(scaled(torch.from_numpy(drawn.copy()).permute(0, 3, 1, 2)), captions)
    assert found["ground"] > 0.9
    assert found["place"] > 0.9
    assert found["object"] > 0.9


def test_plain_diffusers_draws_a_training_picture_with_it() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(repeated.CHECKPOINT)
    torch.manual_seed(0)
    text, training = next(iter(MEMORIZED.items()))
    picture = np.asarray(pipeline(text, num_inference_steps=20, guidance_scale=4.0).images[0])
    assert tiled_distances(picture[None], training[None])[0, 0] < COPY
