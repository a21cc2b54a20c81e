"""What a UNet is told of the prompts, of what the text encoders gave: for torch tensors and numpy arrays alike, and without torch.

Shapes: B prompts, T tokens, D text width.
"""

from __future__ import annotations

__all__ = ["conditioning"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nemo_edge.model.component import SKIPPED
from nemo_edge.model.configuration import Configuration


def conditioning(
    config: Configuration, outputs: Sequence[Mapping[str, Any]], pixel_size: tuple[int, int], unconditional: int = 0
) -> dict[str, Any]:
    """Turn the outputs of the text encoders into the UNet's inputs: `encoder_hidden_states` [B, T, D], and XL's `text_embeds`, `time_ids`.

    For the first `unconditional` rows no layers are skipped, as in diffusers, for the others `clip_skip`.
    """
    hidden = [_read(config, output, unconditional) for output in outputs]
    if config.family == "sd":
        return {"encoder_hidden_states": hidden[0]}
    pooled = outputs[-1]["text_embeds"]
    ids = [[*pixel_size, 0, 0, *pixel_size]] * len(pooled)
    if isinstance(pooled, np.ndarray):
        time_ids: Any = np.array(ids, pooled.dtype)
    else:
        time_ids = pooled.new_tensor(ids)
    return {"encoder_hidden_states": _joined(hidden, -1), "text_embeds": pooled, "time_ids": time_ids}


def _read(config: Configuration, output: Mapping[str, Any], unconditional: int) -> Any:
    """The state [B, T, D] of one text encoder that the UNet gets."""
    skip = config.clip_skip
    if config.family == "sd":
        usual, skipped = output["last_hidden_state"], output[SKIPPED if skip else "last_hidden_state"]
    else:
        states = [state for name, state in output.items() if name.startswith("hidden_states.")]
        usual, skipped = states[-2], states[-2 - skip]
    if not skip or not unconditional:
        return skipped
    return _joined([usual[:unconditional], skipped[unconditional:]], 0)


def _joined(parts: Sequence[Any], axis: int) -> Any:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts, axis=axis)
    import torch

    return torch.cat(list(parts), dim=axis)
