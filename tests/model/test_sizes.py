"""Configurations of a single file: the shipped ones, with the sizes of its tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
from originals import clip_names, openclip_names, refused, unet_names, vae_names

from nemo_edge.model._filekinds import Contents
from nemo_edge.model._sizes import architecture_of, sized
from nemo_edge.model.architectures import configurations, modules

PATH = Path("model.safetensors")


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_a_file_of_true_size_has_the_shipped_configurations(name: str) -> None:
    parts = modules(name)
    prefix = {"sd15": "cond_stage_model.transformer.", "sd21": "cond_stage_model.model.", "sdxl": "conditioner.embedders.0.transformer."}[
        name
    ]
    tensors = {**unet_names(parts["unet"]), **vae_names(parts["vae"])}
    if name == "sd21":
        tensors |= openclip_names(parts["text_encoder"], prefix)
        tensors |= {k.replace("resblocks.22", "resblocks.23"): v for k, v in tensors.items() if "resblocks.22." in k}  # unused there
    else:
        tensors |= clip_names(parts["text_encoder"], prefix)
    if name == "sdxl":
        tensors |= openclip_names(parts["text_encoder_2"], "conditioner.embedders.1.model.")
    contents = Contents({key: tuple(value.shape) for key, value in tensors.items()})
    assert architecture_of(PATH, contents) == name
    assert sized(PATH, contents, name) == configurations(name)


def test_two_kinds_of_text_encoder_are_none() -> None:
    contents = Contents({"cond_stage_model.model.x": (1,), "cond_stage_model.transformer.text_model.x": (1,)})
    refused(lambda: architecture_of(PATH, contents), "its text encoder is none of")
