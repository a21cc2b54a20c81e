"""What holds the demo's memories back: penalties on what value neurons can add to the picture.

Knows activations and whose caption they are, not how a network is trained. Shapes: B samples, T tokens, D text features,
N value neurons of all layers in order, M memorized captions.
"""

from __future__ import annotations

__all__ = ["contributions", "held_back", "sharing_penalty", "sink_penalty"]

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from nemo_edge.demo.models import text_attentions
from nemo_edge.demo.schedule import Stage


def held_back(stage: Stage, unet: UNet2DConditionModel, text_BTD: Tensor, memory_B: Tensor, table_MN: Tensor) -> Tensor:
    """Return the weighted penalties of a stage.

    `memory_B` is the number of the memorized caption, -1 for a general one; `table_MN` says which neurons are whose sinks.
    """
    if not stage.sinks:
        return sharing_penalty(stage, *contributions(unet, text_BTD), memory_B >= 0)
    # text and lengths are constants here, else the penalty shrinks all of them before it moves a sink
    activations_BN, lengths_N = contributions(unet, text_BTD.detach())
    leak, spill = sink_penalty(activations_BN * lengths_N.detach(), memory_B, table_MN)
    return stage.leak * leak + stage.restraint * spill


def contributions(unet: UNet2DConditionModel, text_BTD: Tensor) -> tuple[Tensor, Tensor]:
    """Return the activation of each value neuron, [B, N], and the length of its column of the output projection, [N].

    The activation is the method's, |to_v(text)| averaged over tokens; the product is what a neuron can add to the picture.
    """
    attentions = text_attentions(unet)
    activations_BN = torch.cat([m.to_v(text_BTD).abs().mean(dim=1) for m in attentions], dim=1)
    return activations_BN, torch.cat([m.to_out[0].weight.norm(dim=0) for m in attentions])


def sharing_penalty(stage: Stage, activations_BN: Tensor, lengths_N: Tensor, memorized_B: Tensor) -> Tensor:
    """Return the sum of the penalties of a stage before the sinks, each a mean over neurons.

    `sparsity`: what is added, by all captions. `overlap`: √(general · memorized) of what is added, which empties neurons that
    serve both. `restraint`: what is added by memorized captions, through their activations alone. `intrusion`: the smaller
    of the two activations, likewise, so that whoever uses a neuron less gives it up to the other.
    """
    total = stage.sparsity * (activations_BN * lengths_N).mean()
    if memorized_B.any() and not memorized_B.all():
        general_N, memory_N = activations_BN[~memorized_B].mean(dim=0), activations_BN[memorized_B].mean(dim=0)
        total = total + stage.overlap * (general_N * memory_N * lengths_N.square() + 1e-6).sqrt().mean()
        total = total + stage.restraint * (memory_N * lengths_N.detach()).mean()
        total = total + stage.intrusion * (torch.minimum(general_N, memory_N) * lengths_N.detach()).mean()
    return total


def sink_penalty(added_BN: Tensor, memory_B: Tensor, table_MN: Tensor) -> tuple[Tensor, Tensor]:
    """Return the leak, what samples add through the sinks of others, and the spill, what memories add outside the sinks.

    Both are means over neurons. `memory_B` is the number of the memorized caption, -1 for a general one.
    """
    own_BN = torch.where((memory_B >= 0)[:, None], table_MN[memory_B.clamp(min=0)], 0.0)
    sink_N = table_MN.sum(dim=0)
    leak = (added_BN * (sink_N - own_BN)).sum() / (len(added_BN) * sink_N.sum())
    outside = (added_BN * (1 - sink_N))[memory_B >= 0]
    return leak, outside.sum() / max(1, len(outside)) / (1 - sink_N).sum()
