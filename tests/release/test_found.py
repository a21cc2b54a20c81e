"""What a checkpoint is, and how its kind is drawn."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import save_toy_sd, toy_unet
from transformers import CLIPTokenizer

from nemo_edge import demo
from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.marker import MARKER, RandomWeights
from nemo_edge.recipe.settings import CheckpointSettings
from nemo_edge.release._found import kind_of, look, sampler_of
from nemo_edge.system.errors import InputError


def test_a_checkpoint_is_told_in_words_and_numbers(toy_folder: Path, toy: Checkpoint) -> None:
    found = look(CheckpointSettings(path=str(toy_folder)))
    assert (found.kind, found.pipeline, found.predicts) == ("Stable Diffusion 1.x or 2.x", "StableDiffusionPipeline", "epsilon")
    assert (found.height, found.width, found.scheduler) == (32, 32, "DDIMScheduler")
    assert (found.layers, found.value_layers, found.neurons) == ("paper", 7, 8 * 4 + 16 * 3)
    assert found.parameters["unet"] == sum(p.numel() for p in toy.unet.parameters())
    assert found.text_encoders == ((16, toy.config.text_encoders[0]["max_position_embeddings"]),)


@pytest.mark.parametrize(("wide", "kind"), [(768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x")])
def test_the_width_of_what_is_read_tells_the_version(toy: Checkpoint, wide: int, kind: str) -> None:
    config = replace(toy.config, unet={**toy.config.unet, "cross_attention_dim": wide})
    assert kind_of(config) == kind
    told = replace(config, unet={**config.unet, "time_cond_proj_dim": 8})
    assert kind_of(told) == f"{kind}, a consistency model (LCM)"


def test_xl_is_called_so(toy_sdxl: Checkpoint) -> None:
    assert kind_of(toy_sdxl.config) == "Stable Diffusion XL"


def test_a_unet_that_attends_on_its_way_up_alone_is_searched_there(tmp_path: Path, tokenizer: CLIPTokenizer) -> None:
    unet = toy_unet(
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type=None,
        layers_per_block=1,
    )
    found = look(CheckpointSettings(path=str(save_toy_sd(tmp_path / "up", tokenizer, unet))))
    assert (found.layers, found.value_layers) == ("all", 2)


def test_what_has_no_memories_is_refused(tmp_path: Path, toy_folder: Path) -> None:
    folder = shutil.copytree(toy_folder, tmp_path / "random")
    with pytest.raises(InputError, match="/none does not exist"):
        look(CheckpointSettings(path="/none"))
    (folder / MARKER).write_text(RandomWeights(name="sd15", seed=0, dtype="fp16", architecture="0" * 64, versions={}).model_dump_json())
    with pytest.raises(InputError, match=r"carries random weights \(sd15\)"):
        look(CheckpointSettings(path=str(folder)))


@pytest.mark.parametrize(
    ("scheduler", "unet", "chosen"),
    [
        ({}, {}, ("dpmsolver++", 25, 7.5)),
        ({"prediction_type": "v_prediction"}, {}, ("dpmsolver++", 25, 7.5)),
        ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {}, ("checkpoint", 30, 7.5)),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "trailing"}, {}, ("checkpoint", 2, 1.0)),
        ({"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}, {}, ("dpmsolver++", 25, 7.5)),
        ({"_class_name": "LCMScheduler"}, {}, ("lcm", 4, 1.0)),
        ({}, {"time_cond_proj_dim": 8}, ("lcm", 4, 8.0)),
    ],
)
def test_a_kind_is_drawn_as_it_is_made_to_be(toy: Checkpoint, scheduler: dict[str, Any], unet: dict[str, Any], chosen: object) -> None:
    config = replace(toy.config, scheduler={**toy.config.scheduler, **scheduler}, unet={**toy.config.unet, **unet})
    found = sampler_of(config)
    assert (found.settings.scheduler, found.settings.steps, found.settings.guidance) == chosen
    assert found.why


def test_xl_is_drawn_with_the_guidance_of_its_pipeline(toy_sdxl: Checkpoint) -> None:
    assert sampler_of(toy_sdxl.config).settings.guidance == 5.0


def test_the_demo_is_known() -> None:
    found = look(CheckpointSettings(path=str(demo.CHECKPOINT)))
    assert (found.height, found.layers) == (64, "paper")
