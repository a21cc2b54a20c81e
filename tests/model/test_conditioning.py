"""What a UNet is told of prompts, of arrays and of tensors alike; `test_checkpoint` holds it against diffusers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nemo_edge.model.checkpoint import Checkpoint
from nemo_edge.model.component import SKIPPED
from nemo_edge.model.conditioning import conditioning


def outputs_of(family: str) -> list[dict[str, np.ndarray]]:
    """Of two prompts and each text encoder, every number another."""
    rng = np.random.default_rng(0)

    def state() -> np.ndarray:
        return rng.standard_normal((2, 5, 3), dtype=np.float32)

    if family == "sd":
        return [{"last_hidden_state": state(), "pooler_output": state(), SKIPPED: state()}]
    first = {f"hidden_states.{i}": state() for i in range(4)}
    return [first, {"text_embeds": rng.standard_normal((2, 4), dtype=np.float32), **{f"hidden_states.{i}": state() for i in range(4)}}]


@pytest.mark.parametrize("clip_skip", [0, 1])
@pytest.mark.parametrize("unconditional", [0, 1])
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_arrays_and_tensors_become_the_same(toy: Checkpoint, toy_sdxl: Checkpoint, family: str, unconditional: int, clip_skip: int) -> None:
    config = (toy if family == "sd" else toy_sdxl).config.skipping(clip_skip)
    arrays = outputs_of(family)
    tensors = [{name: torch.from_numpy(array) for name, array in output.items()} for output in arrays]
    got, expected = conditioning(config, arrays, (64, 32), unconditional), conditioning(config, tensors, (64, 32), unconditional)
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[name], expected[name].numpy()) for name in got)
    assert all(got[name].dtype == np.float32 for name in got)


def test_layers_are_skipped_for_the_rows_with_a_prompt_alone(toy: Checkpoint) -> None:
    arrays = outputs_of("sd")
    told = conditioning(toy.config.skipping(1), arrays, (64, 32), 1)["encoder_hidden_states"]
    assert np.array_equal(told[0], arrays[0]["last_hidden_state"][0])
    assert np.array_equal(told[1], arrays[0][SKIPPED][1])


def test_xl_is_told_the_size_and_both_encoders_last_states_but_one(toy_sdxl: Checkpoint) -> None:
    arrays = outputs_of("sdxl")
    told = conditioning(toy_sdxl.config, arrays, (64, 32))
    assert told["time_ids"].tolist() == [[64, 32, 0, 0, 64, 32]] * 2
    assert np.array_equal(told["encoder_hidden_states"], np.concatenate([each["hidden_states.2"] for each in arrays], axis=-1))
